"""Peak memory of `kdcache build` and `kdcache distill`, on a small store and on one ten times as large.

Peak resident memory of a separate process. Training loads in that process (--workers 0), so that the loader counts too;
a run states at its start what its workers need.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from harness import Row, finish, ratio

UNIT_ENTRIES = 4  # small enough that even the small store has more units than can be in flight

FACTORY = '''
"""A small teacher: memory that grows with a store does not depend on it."""
import torch
from torch import nn
from kdcache.cache.teachers.factory import FactoryTeacher


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Conv2d(3, 19, 8, stride=8)
        self.features = nn.Conv2d(3, 512, 8, stride=8)

    def forward(self, images):
        return {"logits": self.logits(images), "features": self.features(images)}


def make():
    torch.manual_seed(0)
    return FactoryTeacher(module=Small(), version="1")
'''


def run(*, quick: bool, as_json: bool) -> int:
    crop, images = ("64x64", (16, 160)) if quick else ("96x192", (40, 400))
    peaks: dict[str, list[float]] = {"build": [], "distill": []}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "small_teacher.py").write_text(FACTORY)
        for n in images:
            for name, arguments in commands(Path(folder), f"streets:{crop}:{n}").items():
                began = perf_counter()
                peaks[name].append(peak_mb(Path(folder), arguments))
                seconds[f"{name}, {n} images"] = [perf_counter() - began]
        stored = sum(path.stat().st_size for path in Path(folder, "stores").rglob("*") if path.is_file())
    rows = [Row("both stores", stored / 1e6, "MB")]
    for name, (small, large) in peaks.items():
        rows += [
            Row(f"peak memory of {name}, {images[0]} images", small, "MB"),
            Row(f"peak memory of {name}, {images[1]} images", large, "MB"),
            ratio(f"peak memory of {name}, {images[1]} images over {images[0]}", large / small, "<= 1.15"),
        ]
    return finish("memory", rows, seconds, f"crops of {crop}, one epoch", as_json=as_json)


def commands(folder: Path, dataset: str) -> dict[str, list[str]]:
    """The two command lines for a dataset."""
    store, run_folder = folder / "stores" / dataset.replace(":", "-"), folder / dataset.replace(":", "-")
    build = [
        "--teacher",
        "small_teacher:make",
        "--force",
        "--features-codec",
        "fp16",
        "--logits-codec",
        "fp16",
    ]
    sizes = ["--views", "1", "--batch-size", "4", "--unit-entries", str(UNIT_ENTRIES)]
    student = ["--backbone-weights", "none", "--eval-split", "", "--workers", "0", "--gradnorm-every", "0"]
    length = ["--epochs", "1", "--batch-size", "4"]
    return {
        "build": ["build", "--dataset", dataset, "--store", str(store), *build, *sizes],
        "distill": [
            *("distill", "--method", "logit+feature", "--store", str(store), "--out", str(run_folder)),
            *(*student, *length),
        ],
    }


def peak_mb(folder: Path, arguments: list[str]) -> float:
    """Peak resident memory of a kdcache command."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kdcache.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"kdcache {' '.join(arguments)} ended with {process.returncode}"
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
