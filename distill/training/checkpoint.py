"""The training state on disk: all that a run needs to go on as if nothing had happened.

    checkpoint/step-00000120/state.pt             the newest one that is whole
                             student.safetensors  the student alone, for use
    checkpoint/.writing/                          one in the making

A state is written aside, synced and renamed, and only then the one before it goes; so a kill at any moment leaves a
whole one. It holds tensors, numbers and text alone and is read with `weights_only=True`.

There is no random state in it: the loop seeds every step from (seed, step, process), and the order of the entries is
a function of the seed.
"""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kdcache.cache.errors import KDCacheError, TrainingError
from kdcache.cache.storage.local import sync_folder

FORMAT_VERSION = 1
STATE = "state.pt"

_PREFIX = "step-"
_WRITING = ".writing"


def save_state(
    folder: Path, step: int, state: dict[str, Any], beside: Callable[[Path], object] = lambda path: None
) -> Path:
    """Put the state of `step` under `folder` (the run's checkpoint folder); its own folder. Older ones go.

    Args:
        beside: writes further files into the folder that it is given, and syncs them.

    Raises:
        KDCacheError: the disk is full or refuses; the state before stands.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    if target.exists():
        return target  # a step of a run has one state
    writing = folder / _WRITING
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        with open(writing / STATE, "wb") as file:
            torch.save({"format": FORMAT_VERSION, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        beside(writing)
        sync_folder(writing)
        writing.rename(target)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError where the disk is full
        shutil.rmtree(writing, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise KDCacheError(
            f"cannot write the checkpoint of step {step} to {folder}: {reason}",
            hint="make room, then --resume: the checkpoint before stands",
        ) from None
    for older in _states(folder)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return target


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state under `folder`, on the CPU; None where there is none.

    Raises:
        TrainingError: the file cannot be read or is of another format.
    """
    states = _states(folder)
    if not states:
        return None
    path = states[-1] / STATE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT_VERSION:
            raise ValueError(f"format {state['format']}")
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"{path} is not a training state: {reason}", hint="start the run anew in another folder"
        ) from None
    return state


def _states(folder: Path) -> list[Path]:
    """Whole states, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"))
