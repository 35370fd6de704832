"""A trial of the student: the time of a training step on this machine, and the time that the teacher would add to it.

It runs the step of the training loop on crops of the planned views, with targets encoded in memory as the store would
contain them. It needs no store and makes none.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

import torch

from kdcache.cache.codecs.registry import Codec
from kdcache.cache.errors import UsageError
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.networks.network import network_config
from kdcache.cache.store.spec import StoreSpec
from kdcache.cache.teachers.teacher import Teacher
from kdcache.distill.clock import Clock
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.inputs import Inputs
from kdcache.distill.data.loader import DeviceCopier, read_batches
from kdcache.distill.data.order import FreshOrder
from kdcache.distill.data.targets import Batch, CachedTargets, FreshViews, OnlineTargets, ViewDataset
from kdcache.distill.losses.methods import METHODS, method_needs
from kdcache.distill.losses.terms import LABELS, LossConfig
from kdcache.distill.training.loop import take_step
from kdcache.distill.training.run import assemble_run, make_accelerator, require_trainable

_TIMED = 5  # calls, after one to warm up
_TIMED_S = 10.0  # after this many seconds, no further call
_CALLS_A_BLOCK = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentTrial:
    """The times of one student and method, at one batch size."""

    student: str
    method: str
    needs: tuple[str, ...]  # the targets that the method reads
    batch_size: int
    step_s: float  # a training step with stored targets, without waiting for data
    teacher_s: float  # the teacher on the crops of a step


def choose_method(name: str | None, targets: Sequence[str]) -> str:
    """The method of that name; without a name, the method that uses the most of these targets.

    Raises:
        UsageError: no method can learn from these targets alone; or the named one needs other targets, or none.
    """
    if name is None:
        fitting = [key for key in METHODS if _targets_of(key) and {*_targets_of(key)} <= {*targets}]
        if not fitting:
            raise UsageError(
                f"no method of `kdcache distill` learns from {', '.join(targets)} alone",
                hint="`kdcache build --dry-run` estimates the size of a store without a student",
            )
        return max(fitting, key=lambda method: len(_targets_of(method)))
    needs = _targets_of(name)
    if not needs or not set(needs) <= set(targets):
        raise UsageError(
            f"--method {name} needs {', '.join(needs) or 'no teacher'}; the store would contain {', '.join(targets)}",
            hint=f"--targets {','.join(needs)}, or another --method" if needs else "--method logit",
        )
    return name


def _targets_of(method: str) -> tuple[str, ...]:
    return tuple(need for need in method_needs(method, LossConfig()) if need != LABELS)


def check_student(name: str, classes: int, batch_size: int) -> None:
    """Raises UsageError for an unknown student, or if the batch is too small for its BatchNorms."""
    require_trainable(network_config(name, classes), batch_size, option="--student-batch-size")


def time_student(
    dataset: SegmentationDataset,
    spec: StoreSpec,
    teacher: Teacher,
    codecs: Mapping[str, Codec],  # by target, those of the planned store
    *,
    student: str,
    method: str,
    batch_size: int,
    mixed_precision: str = "no",
) -> StudentTrial:
    """Time a few training steps of the student, and the teacher on the same crops.

    Raises:
        UsageError: student, method and teacher do not fit, or the batch is too small for a BatchNorm.
    """
    needs = _targets_of(method)
    config = TrainConfig(
        out="none",  # required, but nothing is written
        method=method,
        store="none",  # required too, but never opened: the inputs are made below
        student=student,
        backbone_weights="none",
        steps=1,
        batch_size=batch_size,
        mixed_precision=mixed_precision,
        device="cpu" if teacher.device.type == "cpu" else "auto",
        workers=0,  # one batch is read once and used for all steps
    )
    accelerator = make_accelerator(config)
    order = FreshOrder(n_images=len(dataset), seed=spec.seed)
    inputs = Inputs(
        views=ViewDataset(dataset, FreshViews(spec.views, order, spec.seed)),
        policy=spec.views,
        targets=CachedTargets(codecs),
        target_channels={name: spec.targets[name].shape[0] for name in needs},
        evaluation=None,
        entry_bytes=0,  # only needed to report the loader's memory
        identity={},
    )
    run = assemble_run(config, accelerator, inputs)
    batch = next(read_batches(inputs.views, batch_size=batch_size, start_step=0))
    online, on_device = OnlineTargets(teacher, needs), batch.to(accelerator.device)
    codes = {name: codecs[name].encode(target)[0].cpu() for name, target in online(on_device).items()}
    cached = Batch(batch.image, batch.label, batch.valid_size, codes)

    copy, clock = DeviceCopier(accelerator.device), Clock(accelerator.device)

    def step() -> None:
        take_step(run, repeat(cached), copy, clock)
        run.state.step += 1

    return StudentTrial(
        student=student,
        method=method,
        needs=needs,
        batch_size=batch_size,
        step_s=_median_s(step, accelerator.device),
        teacher_s=_median_s(lambda: online(on_device), accelerator.device),
    )


def _median_s(work: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a call. On CUDA of blocks of calls, because a wait after each would end the host's run-ahead."""
    work()
    calls = _CALLS_A_BLOCK if device.type == "cuda" else 1
    seconds: list[float] = []
    while len(seconds) < _TIMED and sum(seconds) * calls < _TIMED_S:
        _synchronise(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        _synchronise(device)
        seconds.append((time.perf_counter() - began) / calls)
    return statistics.median(seconds)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
