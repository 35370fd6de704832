"""Training runs for tests: a random teacher, small stores, runs in separate processes, and the files of runs."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.storage.remote import RemoteObjects
from kdcache.cache.store.opening import create_store
from kdcache.cache.teachers.teacher import load_teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.config import TrainConfig
from kdcache.distill.data import inputs
from kdcache.distill.training.checkpoint import load_state

DATASET = "streets:64x64:6"
UNCOMPARED = ("kind", "step_s", "wait_s", "training_s")


def make_teacher(path: Path) -> Path:
    """A random PSPNet whose BatchNorms have seen one batch, so that its outputs have an ordinary size."""
    torch.manual_seed(0)
    images = open_dataset(DATASET, None, "train")
    network = build_network(network_config("pspnet_resnet18", len(images.classes.names)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    crops = torch.from_numpy(np.stack([images.image(index) for index in range(4)]))
    network.train()(RGB_IMAGENET(crops, None))
    save_network(path, network, normalisation=RGB_IMAGENET)
    return path


def build(
    url: Path,
    teacher_file: Path,
    *,
    passes: int = 2,
    targets=("logits", "features"),
    unit_entries: int = 4,
    kept: str = "replay",
) -> str:
    images = inputs.open_dataset(DATASET, None, "train")
    classes = len(images.classes.names)
    teacher = load_teacher("pspnet_resnet18", weights=teacher_file, dataset_name=DATASET, classes=classes)
    spec = plan_store(
        images,
        teacher,
        view_policy(DATASET),
        seed=0,
        targets=dict.fromkeys(targets, "fp16"),
        unit_entries=unit_entries,
        inputs=kept,
    )
    store = create_store(str(url), spec, images.image_ids)
    build_store(store, images, teacher, passes=passes, options=BuildOptions(batch_size=2, force=True))
    return str(url)


def small_config(out: Path, store: str, **changes: Any) -> TrainConfig:
    """A run of a few steps on two crops each, on the CPU, with every step in its metrics and nothing evaluated."""
    small = {
        "steps": 6,
        "batch_size": 2,
        "backbone_weights": "none",
        "eval_split": "",
        "device": "cpu",
        "workers": 0,
        "log_every_steps": 1,
        "gradnorm_every_steps": 0,
    }
    return TrainConfig(out=str(out), store=store, **{**small, **changes})


def lines_of(config: TrainConfig, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in Path(config.out, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in UNCOMPARED} for line in lines if line["kind"] == kind]


def tensors_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    """The weights and the state of the optimiser."""
    state = load_state(Path(config.out, "checkpoint"))
    momenta = {f"momentum {k}": v["momentum_buffer"] for k, v in state["optimiser"]["state"].items()}
    return {**state["model"], **momenta}


def assert_same_run(one: TrainConfig, other: TrainConfig) -> None:
    mine, theirs = tensors_of(one), tensors_of(other)
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert lines_of(one) == lines_of(other)


def interrupt_after(step: int):
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


FROZEN = property(lambda module: False, lambda module, mode: None)

SMALL_QUEUES = {"pixel_slots": 64, "region_slots": 8}  # of a memory; small, because it is in every checkpoint

SCRIPT = f"""
import json, sys, torch
from kdcache.distill.config import TrainConfig
from kdcache.distill.losses.memory import CrossImageMemory
from kdcache.distill.training.loop import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, slots in {SMALL_QUEUES}.items():
        setattr(CrossImageMemory, name, slots)
    if sys.argv[2] == "freeze":
        torch.nn.Dropout2d.training = property(lambda module: False, lambda module, mode: None)
    train(TrainConfig.from_dict(json.loads(sys.argv[1])))
"""


def start(
    config: TrainConfig, *, freeze: bool = False, rank: int = 0, processes: int = 1, port: int = 0
) -> subprocess.Popen[bytes]:
    """A run in `processes` separate processes, as `accelerate launch` starts them."""
    script = Path(config.out).parent / "run.py"
    script.write_text(SCRIPT)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    launched = {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in place.items()}} if processes > 1 else {}
    arguments = [json.dumps(config.to_dict()), "freeze" if freeze else "learn"]
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], env={**os.environ, **launched}, start_new_session=True
    )


def wait_until_gone(group: int) -> None:
    """Check that no child of a process outlives it for long."""
    for _ in range(300):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("processes of a killed run are still there")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def note_shard_gets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the path of every shard is added that this process gets from remote storage, in order."""
    gets: list[str] = []
    real = RemoteObjects.read_ranges

    def noted(self, ranges):
        gets.extend(each.path for each in ranges if "/c/" in each.path)
        return real(self, ranges)

    monkeypatch.setattr(RemoteObjects, "read_ranges", noted)
    return gets
