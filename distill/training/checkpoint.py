"""The training state on disk, from which a resumed run computes the same numbers as an uninterrupted one.

    checkpoint/step-00000120/state.pt             the newest complete state
                             student.safetensors  the student alone, ready to use
    checkpoint/.writing/                          a state that is being written

A state has tensors, numbers and text only. It needs no random state: the loop seeds every step from (seed, step,
process), and the order of the entries is a function of the seed.
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
    folder: Path, step: int, state: dict[str, Any], write_more: Callable[[Path], object] = lambda path: None
) -> Path:
    """Save the state of `step` into a new folder in `folder` (the run's checkpoint folder) and delete older states.

    Args:
        write_more: called with the new folder; writes further files into it, and syncs them.

    Returns:
        The new folder.

    Raises:
        KDCacheError: the disk is full or refuses to write. The previous state is kept.
    """
    target = folder / f"{_PREFIX}{step:08d}"
    if target.exists():
        return target  # a step has one state, whoever computes it
    # Write aside, sync, rename, and only then delete older states: a kill at any moment leaves a complete one.
    writing = folder / _WRITING
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        with open(writing / STATE, "wb") as file:
            torch.save({"format": FORMAT_VERSION, "step": step, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        write_more(writing)
        sync_folder(writing)
        writing.rename(target)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch's zip writer raises RuntimeError if the disk is full
        shutil.rmtree(writing, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise KDCacheError(
            f"cannot write the checkpoint of step {step} to {folder}: {reason}",
            hint="free some disk space, then --resume: the previous checkpoint is kept",
        ) from None
    for older in _states(folder)[:-1]:
        shutil.rmtree(older, ignore_errors=True)
    return target


def load_state(folder: Path) -> dict[str, Any] | None:
    """The newest state in `folder`, with tensors on the CPU; None if there is none.

    Raises:
        TrainingError: the file is unreadable or has another format.
    """
    states = _states(folder)
    if not states:
        return None
    path = states[-1] / STATE
    try:
        # weights_only: a pickle can run code, and a run's folder may come from someone else.
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
            f"{path} is not a readable training state: {reason}",
            hint="start the run again with --out NEW_FOLDER",
        ) from None
    return state


def _states(folder: Path) -> list[Path]:
    """The folders of complete states, oldest first."""
    return sorted(folder.glob(f"{_PREFIX}*"))
