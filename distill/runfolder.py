"""The folder of a run: its options, its inputs, its environment and its results.

    config.json         TrainConfig
    inputs.json         store key, calibration and manifests, dataset fingerprint: what the run learns from
    environment.json    versions, device, threads, processes, memory for data in flight
    metrics.jsonl       one object a line: kind "train" | "profile" | "gradnorm" | "eval" | "save" | "budget", step, values
    events/             the same for TensorBoard
    checkpoint/         the latest training state (training/checkpoint.py)
    profile/            torch's trace of a few steps, with --profile (training/profile.py)
    student.safetensors scores.json report.md figures/ samples/

Only the first process writes.
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


def contains_run(folder: Path, config: TrainConfig, *, resume: bool) -> bool:
    """True if `folder` contains the run that `config` describes, for you to resume; False if it is new or empty.

    Raises:
        UsageError: the folder contains a run and `resume` is False; or another run; or files of something else.
    """
    if not (folder / CONFIG).exists():
        # Hidden files do not count: volumes and editors leave some in a folder that is empty to its user.
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(
                f"--out {folder} is not empty and is not the folder of a run", hint="--out NEW_FOLDER"
            )
        return False
    if not resume:
        raise UsageError(
            f"--out {folder} already contains a run", hint="--resume to continue it, or --out NEW_FOLDER"
        )
    before = TrainConfig.from_dict(read_json(folder / CONFIG))
    if lines := before.differences(config):
        raise UsageError(
            f"--out {folder} contains a run with other options (of the run, yours):\n  " + "\n  ".join(lines),
            hint="resume with the options of that run, or --out NEW_FOLDER for a new run",
        )
    return True


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a run's folder. Raises UsageError if the file contains anything else."""
    try:
        document = json.loads(path.read_text())
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise UsageError(f"{path} is not a JSON object", hint="name another folder, or delete this file")
    return document


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a small JSON file in one step: after a crash or a power failure the old or the new one is there, whole.

    Raises:
        KDCacheError: the disk is full or the folder is read-only.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as file:
            file.write(json.dumps(document, indent=2, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)  # else a power failure may undo the rename
    except OSError as error:
        raise KDCacheError(f"cannot write {path}: {error.strerror}") from None


class Metrics:
    """metrics.jsonl and TensorBoard's events, opened for writing.

    A resumed run first drops what was written after its checkpoint: it is about to write these steps again.

    Args:
        step: of the checkpoint. TensorBoard is asked to hide events after it.
        size: bytes of metrics.jsonl at the checkpoint, as `sync` returned.
        enabled: False for a process that writes nothing.
    """

    def __init__(self, folder: Path, *, step: int = 0, size: int = 0, enabled: bool = True) -> None:
        self._enabled = enabled
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # imported here: it takes a second

            self._file = open(folder / METRICS, "ab")  # noqa: SIM115 - open as long as the run
            self._file.truncate(size)
            self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line. Its numbers also go to TensorBoard as `kind/name`. NaN and infinities become null."""
        if not self._enabled:
            return
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._file.write(json.dumps({"kind": kind, "step": step, **values}, allow_nan=False).encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._events.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> int:
        """Force everything to the disk. Returns the size of metrics.jsonl in bytes, for the checkpoint to store."""
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
    """What may explain why two runs of one configuration differ: versions, device, processes.

    Args:
        in_flight: fields of loader.InFlight; each becomes `in_flight_<name>`.
    """
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
