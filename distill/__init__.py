"""Distillation: reader -> student -> report.

The ground floor is here: `config` (the options of a run), `recipes`, `schedule`, `units` (durations and sizes as
text), `runfolder` (the files of a run), `clock` (seconds of training by the parts of a step). The rooms, from the ground
up: `losses`, `data`, `scoring`, `students`, `report`, `training`, `compare`, `study`.

This file is the front door, `from kdcache.distill import load_student`:

    load_student      a trained student, from its run's folder or its file
    Student           what load_student returns: logits and classes of an image
    build_student     a network to train, and how its input is normalised
    train             a whole run, as `kdcache distill` does it
    TrainConfig       all that such a run is asked to do
    TeacherDataset    a store as batches for a training loop of your own
    TeacherBatch      crops, labels and decoded targets of one step
    DistillationLoss  the loss of a method as a module
    LossConfig        what to change in a method's weights, temperature and masks
    METHODS           all methods: their terms and weights
    Term              the base class of a term of your own
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcache.distill.config import TrainConfig
    from kdcache.distill.data.teacher_dataset import TeacherBatch, TeacherDataset
    from kdcache.distill.losses.loss import DistillationLoss
    from kdcache.distill.losses.methods import METHODS
    from kdcache.distill.losses.terms import LossConfig, Term
    from kdcache.distill.students.start import build_student
    from kdcache.distill.students.student import Student, load_student
    from kdcache.distill.training.loop import train

__all__ = [
    "METHODS",
    "DistillationLoss",
    "LossConfig",
    "Student",
    "TeacherBatch",
    "TeacherDataset",
    "Term",
    "TrainConfig",
    "build_student",
    "load_student",
    "train",
]

_MODULES = {
    "config": "TrainConfig",
    "data.teacher_dataset": "TeacherBatch TeacherDataset",
    "losses.loss": "DistillationLoss",
    "losses.methods": "METHODS",
    "losses.terms": "LossConfig Term",
    "students.start": "build_student",
    "students.student": "Student load_student",
    "training.loop": "train",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    # Imported when asked for: torch takes seconds, and the command line reads its options without it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
