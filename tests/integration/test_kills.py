"""Killed with -9 at random moments and started again, builds and training runs end with the same result.

KDCACHE_KILLS sets how many kills the build takes; a training run takes a third of them.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KDCACHE_KILLS", "6"))
TRAINING_KILLS = max(2, KILLS // 3)
STEPS = max(30, 2 * TRAINING_KILLS)
DATASET = "streets:48x96:40"

FACTORY = '''
"""A teacher of one seeded convolution that takes its time, so that kills meet it at work."""
import time
import torch
from torch import nn
from kdcache.cache.teachers.teacher import FactoryTeacher


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(3, 19, 8, stride=8)
        for parameter in self.conv.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10

    def forward(self, images):
        time.sleep(0.05)
        return {"logits": self.conv(images), "features": self.conv(images)[:, :8]}


def make():
    return FactoryTeacher(module=Slow(), version="1")
'''


@pytest.fixture(scope="module")
def factory_path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("factory")
    (folder / "slow_teacher.py").write_text(FACTORY)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, factory_path) -> Path:
    """A store of an uninterrupted build."""
    store = tmp_path_factory.mktemp("whole") / "store"
    finish(factory_path, *build_arguments(store))
    return store


def command(factory_path: Path, *arguments: str) -> subprocess.Popen:
    """A kdcache command in a new process group. Its messages go to `messages.txt` in the factory's folder."""
    environment = {**os.environ, "PYTHONPATH": str(factory_path), "OMP_NUM_THREADS": "1"}
    with open(factory_path / "messages.txt", "wb") as messages:
        return subprocess.Popen(
            [sys.executable, "-m", "kdcache.cli", *arguments],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=messages,
            start_new_session=True,
        )


def build_arguments(store: Path) -> list[str]:
    teacher = [
        "--teacher",
        "slow_teacher:make",
        "--force",
        "--views",
        "3",
        "--batch-size",
        "2",
        "--threads",
        "1",
    ]
    return ["build", "--dataset", DATASET, "--store", str(store), "--unit-entries", "2", *teacher]


def distill_arguments(store: Path, out: Path) -> list[str]:
    length = ["--steps", str(STEPS), "--save-every", "3", "--batch-size", "2", "--seed", "1"]
    student = [
        "--student",
        "pspnet_resnet18",
        "--backbone-weights",
        "none",
        "--eval-every",
        "0",
        "--device",
        "cpu",
    ]
    return [
        "distill",
        "--method",
        "logit",
        "--store",
        str(store),
        "--out",
        str(out),
        "--resume",
        *length,
        *student,
    ]


def finish(factory_path: Path, *arguments: str) -> None:
    process = command(factory_path, *arguments)
    process.wait(timeout=600)
    assert process.returncode == 0, (factory_path / "messages.txt").read_text()


def kill_after(process: subprocess.Popen, count_now, target: int, delay_s: float) -> bool:
    """Kill the process group a moment after `count_now()` reaches `target`. False if it ended before."""
    while process.poll() is None:
        if count_now() >= target:
            time.sleep(delay_s)
            break
        time.sleep(0.005)
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def store_bytes(folder: Path) -> dict[str, bytes]:
    """All objects except commit records, which contain times, and leases, which killed builders may leave."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {
        name: data for name, data in named.items() if not re.match(r"kd/(passes/\d+/units|leases)/", name)
    }


def commits_of(store: Path) -> int:
    return sum(1 for _ in store.glob("kd/passes/*/units/*.json"))


def test_a_build_killed_again_and_again(tmp_path, factory_path, whole):
    units = commits_of(whole)
    chooser = random.Random(0)
    killed = 0
    for attempt in range(KILLS):
        process = command(factory_path, *build_arguments(tmp_path / "killed"))
        target = units * attempt // (KILLS + 1)
        before = commits_of(tmp_path / "killed")
        killed += kill_after(
            process, lambda: commits_of(tmp_path / "killed"), max(before, target), chooser.uniform(0, 0.3)
        )
    finish(factory_path, *build_arguments(tmp_path / "killed"))
    assert killed >= KILLS - 1
    assert store_bytes(tmp_path / "killed") == store_bytes(whole)


def test_a_training_run_killed_again_and_again(tmp_path, factory_path, whole):
    finish(factory_path, *distill_arguments(whole, tmp_path / "whole"))
    chooser = random.Random(1)

    def steps_done() -> int:
        path = tmp_path / "killed" / "checkpoint"
        return (
            max((int(p.name.split("-")[1]) for p in path.glob("step-*")), default=0) if path.exists() else 0
        )

    killed = 0
    for attempt in range(TRAINING_KILLS):
        process = command(factory_path, *distill_arguments(whole, tmp_path / "killed"))
        target = max(steps_done(), (STEPS - 5) * attempt // TRAINING_KILLS)
        killed += kill_after(process, steps_done, target, chooser.uniform(0, 1.0))
    finish(factory_path, *distill_arguments(whole, tmp_path / "killed"))
    assert killed >= TRAINING_KILLS - 1
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("whole", "killed")]
    assert weights[0] == weights[1]
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in ("whole", "killed")]
    assert scores[0]["scores"] == scores[1]["scores"]
    assert train_lines(tmp_path / "whole") == train_lines(tmp_path / "killed")


def train_lines(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]
