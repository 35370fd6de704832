"""Small builds for tests: a tiny teacher, stores of a few units, and their bytes."""

import os
import re
import socket
import time
from pathlib import Path

import torch

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.store.opening import create_store
from kdcache.cache.views.policy import view_policy

DATASET = "streets:48x64:10"
OPTIONS = BuildOptions(batch_size=2, decode_threads=2, force=True)


class TinyTeacher:
    """Seeded stride-8 convolutions with the interface of a Teacher; `poison` makes one of its maps not finite."""

    device = torch.device("cpu")
    precision = "float32"
    classifier = None

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kernels = {
            "logits": torch.randn(19, 3, 8, 8, generator=generator) / 100,
            "features": torch.randn(6, 3, 8, 8, generator=generator) / 100,
        }
        self.poison: int | None = None
        self.calls = 0

    def identity(self):
        return {"name": "tiny", "weights_sha256": str(float(self.kernels["logits"].sum()))}

    def target_shape(self, target, crop):
        return (len(self.kernels[target]), crop[0] // 8, crop[1] // 8)

    def __call__(self, crops, valid_size, targets=None):
        x = crops.permute(0, 3, 1, 2).float() / 255 - 0.5
        outputs = {
            name: torch.nn.functional.conv2d(x, kernel, stride=8) for name, kernel in self.kernels.items()
        }
        if self.calls == self.poison:
            outputs["features"][0, 0, 0, 0] = float("nan")
        self.calls += 1
        return outputs


def begin(url, *, dataset=DATASET, teacher=None, **changes):
    images = open_dataset(dataset, None, "train")
    teacher = teacher or TinyTeacher()
    choices = {"seed": 0, "targets": {"logits": "uniform", "features": "fp16"}, "unit_entries": 4, **changes}
    spec = plan_store(images, teacher, view_policy(dataset), **choices)
    return create_store(str(url), spec, images.image_ids), images, teacher


def build(url, *, passes=1, options=OPTIONS, **changes):
    store, images, teacher = begin(url, **changes)
    return build_store(store, images, teacher, passes=passes, options=options)


def shards_of(folder: Path) -> dict[str, bytes]:
    """All of a store but its commit records, which contain times and names of machines."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not re.match(r"kd/(passes/\d+/units|tmp)/", name)}


class CountingTeacher(TinyTeacher):
    """Works slowly, and appends a byte to a file for every batch that it starts. Several processes share the file."""

    def __init__(self, log: str) -> None:
        super().__init__()
        self.log = log

    def __call__(self, crops, valid_size, targets=None):
        with open(self.log, "ab") as file:
            file.write(b".")
        time.sleep(0.05)
        return super().__call__(crops, valid_size, targets)


def run_builder(
    url: str, environment: dict[str, str], number: int, log: str, choices: dict, passes: int
) -> None:
    """A builder in a separate process. Its leases name a separate host."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    socket.gethostname = lambda: f"host-{number}"
    store, images, teacher = begin(url, teacher=CountingTeacher(log), **choices)
    options = BuildOptions(batch_size=2, decode_threads=1, force=True, heartbeat_s=1.0)
    build_store(store, images, teacher, passes=passes, options=options)
