"""Build and training take no more memory for a store ten times as large.

The measure is the peak of resident memory of a whole process. Limits would be less exact: RLIMIT_AS counts the address
space that torch reserves and never touches, RLIMIT_DATA the stacks and arenas of all threads, and a cgroup needs rights
that tests lack. glibc is set to return large blocks at once, because the memory that it retains makes peaks vary by 50 MB.
Training loads in its own process here (--workers 0), so that the loader counts too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

IMAGES = (80, 800)
UNIT_ENTRIES = 8  # small enough that even the small store has more units than can be in flight

FACTORY = '''
"""A teacher whose features are noise, so that a store of few images is large."""
import torch
from torch import nn
from kdcache.cache.teachers.factory import FactoryTeacher


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 19, 8, stride=8)

    def forward(self, images):
        logits = self.conv(images)
        return {"logits": logits, "features": torch.randn(len(images), 4096, *logits.shape[2:])}


def make():
    torch.manual_seed(0)
    return FactoryTeacher(module=Noise(), version="1")
'''


def peak_bytes(folder: Path, *arguments: str) -> int:
    """The peak of resident memory of a kdcache command."""
    settings = {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    environment = {**os.environ, **settings}
    with open(folder / "messages.txt", "wb") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdcache.cli", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=messages,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (folder / "messages.txt").read_text()
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def build_arguments(folder: Path, images: int) -> list[str]:
    teacher = [
        "--teacher",
        "noise_teacher:make",
        "--force",
        "--features-codec",
        "fp16",
        "--logits-codec",
        "fp16",
    ]
    sizes = ["--views", "1", "--batch-size", "8", "--unit-entries", str(UNIT_ENTRIES), "--threads", "1"]
    return [
        "build",
        "--dataset",
        f"streets:64x64:{images}",
        "--store",
        str(folder / f"{images}"),
        *teacher,
        *sizes,
    ]


def distill_arguments(folder: Path, images: int) -> list[str]:
    student = ["--backbone-weights", "none", "--eval-split", "", "--device", "cpu", "--workers", "0"]
    length = ["--epochs", "1", "--batch-size", "8", "--gradnorm-every", "0"]
    run = ["--store", str(folder / f"{images}"), "--out", str(folder / f"run-{images}")]
    return ["distill", "--method", "feature", *run, *student, *length]


def test_ten_times_the_store_in_the_same_memory(tmp_path):
    (tmp_path / "noise_teacher.py").write_text(FACTORY)
    peaks = {
        arguments: [peak_bytes(tmp_path, *arguments(tmp_path, images)) for images in IMAGES]
        for arguments in (build_arguments, distill_arguments)
    }
    stored = sum(path.stat().st_size for path in (tmp_path / f"{IMAGES[1]}").rglob("*") if path.is_file())
    allowed = stored / 10
    assert allowed > 30e6
    for arguments, (small, large) in peaks.items():
        assert large - small <= allowed, (arguments.__name__, small, large, stored)
