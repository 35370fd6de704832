"""The folder of a run: what was asked, where it ran, what came of it.

    config.json         TrainConfig
    inputs.json         store key, calibration and manifests, dataset fingerprint: what the run learns from
    environment.json    versions, device, threads, processes, memory for data in flight
    metrics.jsonl       one object a line: kind "train" | "profile" | "gradnorm" | "eval" | "save" | "budget", step, values
    events/             the same for TensorBoard
    checkpoint/         the latest training state (checkpoint.py)
    profile/            torch's trace of a few steps, where it was asked for (profile.py)
    student.safetensors scores.json report.md figures/ samples/

Small files appear whole or not at all. metrics.jsonl is appended to; resuming cuts it back to where it
was at the checkpoint, so that nothing stands in it twice. Only the first process writes.
"""

import json
import math
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.cache.storage.local import sync_folder
from kdcache.distill.config import TrainConfig

CONFIG = "config.json"
INPUTS = "inputs.json"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
EVENTS = "events"
CHECKPOINT = "checkpoint"
STUDENT = "student.safetensors"
SCORES = "scores.json"

_PACKAGES = ("kdcache", "torch", "torchvision", "accelerate", "numpy", "pillow", "zarr", "safetensors")


def require_free(folder: Path, config: TrainConfig, *, resume: bool) -> bool:
    """Whether `folder` holds the run that `config` describes, to be gone on with; False where there is none yet.

    Raises:
        UsageError: the folder holds a run and `resume` was not asked for, holds another run, or holds something else.
    """
    if not (folder / CONFIG).exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(f"--out {folder} holds files that are not a run's", hint="name a new folder")
        return False
    if not resume:
        raise UsageError(
            f"--out {folder} holds a run", hint="--resume goes on with it; or name another folder"
        )
    before = TrainConfig.from_dict(read_json(folder / CONFIG))
    if lines := before.differences(config):
        raise UsageError(
            f"--out {folder} holds another run; differing fields (run, asked):\n  " + "\n  ".join(lines),
            hint="resume with the options that it was begun with, or name another folder",
        )
    return True


def read_json(path: Path) -> dict[str, Any]:
    """Raises UsageError for a file of a run folder that is no JSON object."""
    try:
        document = json.loads(path.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a JSON object", hint="name another folder, or delete this one")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a small file so that it is there whole or not at all, also after a power failure."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as file:
            file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise KDCacheError(f"cannot write {path}: {error.strerror}") from None


class Metrics:
    """metrics.jsonl and TensorBoard's events, cut back to what stood at a checkpoint.

    Args:
        step: of the checkpoint; events after it are marked as void.
        size: bytes of metrics.jsonl at the checkpoint, from `sync`.
        enabled: a process that writes nothing says False.
    """

    def __init__(self, folder: Path, *, step: int = 0, size: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # takes a second, and reports are made without

            self._file = open(folder / METRICS, "ab")  # noqa: SIM115 - open as long as the run
            self._file.truncate(size)
            self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line; its numbers go to TensorBoard as `kind/name`. What is not finite becomes null."""
        if not self._enabled:
            return
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> int:
        """Have everything on the disk, as a checkpoint wants it; the bytes of metrics.jsonl so far."""
        if not self._enabled:
            return 0
        os.fsync(self._file.fileno())
        self._events.flush()
        return self._file.tell()

    def close(self) -> None:
        if self._enabled:
            self._file.close()
            self._events.close()


def environment(
    device: torch.device, *, processes: int, workers: int, in_flight: Mapping[str, int]
) -> dict[str, Any]:
    """What may explain a difference between two runs of one configuration, and what it takes."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "workers": workers,
        **{f"in_flight_{name}": value for name, value in in_flight.items()},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
