"""scripts/gpucheck: what one GPU makes of kdcache. Sections in order of worth; each is skipped when its time is gone.

Every row is written to OUT/gpucheck.json as soon as it is known, so that a check that is cut off leaves what it found.
A step is timed in blocks without a wait in between, and the sides take turns, so that a clock that drifts meets all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_build import random_teacher, write_images

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.images.decoded import DecodedImages
from kdcache.cache.progress import silent
from kdcache.cache.storage.host_cache import HostCache
from kdcache.cache.store.opening import create_store
from kdcache.cache.teachers.teacher import PRECISIONS, Teacher
from kdcache.cache.views.policy import ViewPolicy
from kdcache.distill.clock import WAIT, Clock
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.loader import DeviceCopier, read_batches
from kdcache.distill.data.targets import Batch
from kdcache.distill.losses.methods import METHODS, method_needs
from kdcache.distill.losses.terms import LossConfig
from kdcache.distill.training.loop import take_step
from kdcache.distill.training.run import Run, make_accelerator, open_run
from kdcache.distill.training.stream import open_batches


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large everything is."""

    teacher: str
    image: tuple[int, int]
    crop: tuple[int, int]
    batch: int
    images: int
    block: int  # steps without a wait
    rounds: int


REAL = Size(
    teacher="pspnet_resnet101",
    image=(1024, 2048),
    crop=(512, 1024),
    batch=8,
    images=64,
    block=10,
    rounds=5,
)
TINY = Size(teacher="pspnet_resnet18", image=(64, 128), crop=(32, 64), batch=2, images=8, block=2, rounds=2)
TARGETS = {"logits": "dct:0.5", "features": "dct:0.5:64", "aux": "fp16", "backbone": "fp16"}
STORED = ("logits", "features")


@dataclass(slots=True)
class Check:
    """The state of a check: what it found, and what later sections need of earlier ones."""

    size: Size
    out: Path
    folder: Path
    deadline: float  # monotonic seconds
    device: torch.device
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def precision(self) -> str:
        return "bf16" if self.device.type == "cuda" else "no"

    def row(self, section: str, what: str, value: Any, unit: str = "") -> None:
        self.rows.append({"section": section, "what": what, "value": value, "unit": unit})
        (self.out / "gpucheck.json").write_text(json.dumps(self.rows, indent=1))
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{section:<10}  {what:<58}  {shown} {unit}".rstrip(), flush=True)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed(self, sides: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Median seconds of a call by side: blocks of calls, the sides in turn, after a block of each to warm up."""
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(self.size.rounds + 1):
            for side, work in sides.items():
                self.wait()
                began = time.perf_counter()
                for _ in range(self.size.block):
                    work()
                self.wait()
                if turn:
                    seconds[side].append((time.perf_counter() - began) / self.size.block)
        return {side: statistics.median(each) for side, each in seconds.items()}


def machine(check: Check) -> None:
    check.row("machine", "device", str(check.device))
    if check.device.type == "cuda":
        properties = torch.cuda.get_device_properties(check.device)
        check.row("machine", "gpu", properties.name)
        check.row("machine", "gpu memory", properties.total_memory / 2**30, "GiB")
        pinned = torch.empty(2**28, dtype=torch.uint8).pin_memory()
        target = torch.empty_like(pinned, device=check.device)
        seconds = check.timed({"copy": lambda: target.copy_(pinned, non_blocking=True)})["copy"]
        check.row("machine", "host to device", len(pinned) / seconds / 1e9, "GB/s")
    check.row("machine", "cores", len(os.sched_getaffinity(0)))
    check.row("machine", "versions", f"torch {torch.__version__}, python {platform.python_version()}")


def tests(check: Check) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"]
    limit_s = max(10.0, min(150.0, check.deadline - time.monotonic()))
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=limit_s, check=False)
    (check.out / "tests.txt").write_text(done.stdout + done.stderr)
    check.row("tests", "pytest -m gpu", (done.stdout.strip().splitlines() or ["no output"])[-1])


def teacher(check: Check) -> None:
    """The forward pass by precision, and how far each is from float32."""
    size = check.size
    torch.manual_seed(0)
    crops = torch.randint(0, 256, (size.batch, *size.crop, 3), dtype=torch.uint8, device=check.device)
    valid_size = torch.tensor([size.crop] * size.batch, device=check.device)
    teachers = {name: replace(open_teacher(check), precision=name) for name in PRECISIONS}
    seconds = check.timed(
        {name: (lambda each=each: each(crops, valid_size, STORED)) for name, each in teachers.items()}
    )
    exact = F.log_softmax(teachers["float32"](crops, valid_size, STORED)["logits"], dim=1)
    for name, value in seconds.items():
        check.row("teacher", f"forward pass, {name}", size.batch / value, "crops/s")
        found = F.log_softmax(teachers[name](crops, valid_size, STORED)["logits"], dim=1)
        kl = F.kl_div(found, exact, reduction="none", log_target=True).sum(dim=1).mean()
        check.row("teacher", f"KL to float32, {name}", float(kl))


def steps(check: Check) -> None:
    """A step whose batch is on the device already: none, cached, online."""
    sides = {
        "none": open_side(check, "none", "none"),
        "logit": open_side(check, "logit", "cache"),
        "feature": open_side(check, "feature", "cache"),
        "logit online": open_side(check, "logit", "online"),
    }
    seconds = check.timed({name: staged(run) for name, run in sides.items()})
    for name, value in seconds.items():
        check.row("step", f"{name}, batch of {check.size.batch} on the device", 1000 * value, "ms")
        check.row("step", f"{name} over none", value / seconds["none"])
    check.row("step", "online over cached logit", seconds["logit online"] / seconds["logit"])


def feed(check: Check) -> None:
    """The loader alone, and a run with its loader."""
    cores = len(os.sched_getaffinity(0))
    for workers in dict.fromkeys((1, max(1, cores - 1))):
        run = open_side(check, "feature", "cache")
        copy = DeviceCopier(check.device, run.inputs.policy)
        batches = read_batches(
            run.inputs.views,
            batch_size=check.size.batch,
            start_step=0,
            workers=workers,
            pin_memory=check.device.type == "cuda",
        )
        with closing(batches):
            rate = rate_of(check, batches, copy)
        check.row("feed", f"loader alone, {workers} workers", rate, "crops/s")


def rate_of(check: Check, batches: Iterator[Batch], copy: DeviceCopier) -> float:
    for _ in range(check.size.block):
        copy(next(batches))
    check.wait()
    began, count = time.perf_counter(), check.size.block * check.size.rounds
    for _ in range(count):
        copy(next(batches))
    check.wait()
    return count * check.size.batch / (time.perf_counter() - began)


def end_to_end(check: Check) -> None:
    """Steps of the loop with its loader, and the part of them that waits for data."""
    for method, source in (("none", "none"), ("logit", "cache"), ("feature", "cache"), ("logit", "online")):
        run = open_side(check, method, source, workers=None)
        clock = Clock(check.device)
        copy = DeviceCopier(check.device, run.inputs.policy)
        with closing(open_batches(run)) as batches:
            for turn in range(2):
                clock.lap()
                for _ in range(check.size.block * (1 + turn * check.size.rounds)):
                    take_step(run, batches, copy, clock)
                    run.state.step += 1
                seconds, parts = clock.lap()
        count = check.size.block * (1 + check.size.rounds)
        check.row("run", f"{method}, {source}", count * check.size.batch / seconds, "crops/s")
        check.row("run", f"waiting for data, {method}, {source}", 100 * parts[WAIT] / seconds, "%")


def build(check: Check) -> None:
    """A build over the bare teacher on the same crops."""
    began = time.perf_counter()
    count = build_bank(check, "built", STORED)
    seconds = time.perf_counter() - began
    check.row("build", "crops, calibration included", count / seconds, "crops/s")


def methods(check: Check) -> None:
    """A step of every method over none."""
    base = staged(open_side(check, "none", "none"))
    for name in METHODS:
        if name != "none" and time.monotonic() < check.deadline:
            seconds = check.timed({"none": base, name: staged(open_side(check, name, "cache"))})
            check.row("methods", f"{name} over none", seconds[name] / seconds["none"])


SECTIONS: dict[str, tuple[Callable[[Check], None], float]] = {  # name -> what it does, seconds that it needs
    "machine": (machine, 5),
    "tests": (tests, 60),
    "teacher": (teacher, 30),
    "step": (steps, 60),
    "feed": (feed, 30),
    "run": (end_to_end, 60),
    "build": (build, 40),
    "methods": (methods, 60),
}


def open_teacher(check: Check) -> Teacher:
    return random_teacher(check.size.teacher, 19, check.folder)


def build_bank(check: Check, name: str, targets: tuple[str, ...]) -> int:
    """A store of one view of the drawn images, as files; how many crops that are."""
    size = check.size
    files = check.folder / "images"
    written = (
        open_dataset("folder", files, "train")
        if files.exists()
        else write_images(files, size.image, size.images)
    )
    dataset = DecodedImages(written, HostCache(check.folder / "cache", 10**11))
    policy = ViewPolicy(crop_height_px=size.crop[0], crop_width_px=size.crop[1], photometric=True)
    built = open_teacher(check)
    spec = plan_store(dataset, built, policy, seed=0, targets={target: TARGETS[target] for target in targets})
    store = create_store(str(check.folder / name), spec, dataset.image_ids)
    build_store(store, dataset, built, passes=1, options=BuildOptions(batch_size=size.batch, force=True))
    return size.images


def open_side(check: Check, method: str, source: str, workers: int | None = 0) -> Run:
    config = TrainConfig(
        out=str(check.folder / f"{source}-{method}-{time.monotonic_ns()}"),
        method=method,
        source=source,
        store=str(check.folder / "bank"),
        data_root=str(check.folder / "images"),
        backbone_weights="none",
        batch_size=check.size.batch,
        mixed_precision=check.precision,
        steps=100_000,
        workers=workers,
        eval_split="",
        image_cache=str(check.folder / "cache"),
        teacher=check.size.teacher if source == "online" else "",
        teacher_weights=str(check.folder / "teacher.safetensors") if source == "online" else "",
        gradnorm_every_steps=0,
    )
    return open_run(config, make_accelerator(config), silent)


def staged(run: Run) -> Callable[[], object]:
    """Steps on one batch that stays on the device."""
    device = run.accelerator.device
    copy, clock = DeviceCopier(device, run.inputs.policy), Clock(device)
    batch = copy(next(read_batches(run.inputs.views, batch_size=run.config.batch_size, start_step=0)))

    def step() -> None:
        take_step(run, repeat(batch), lambda staged: staged, clock)  # type: ignore[arg-type]
        run.state.step += 1

    return step


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpucheck", description=__doc__)
    parser.add_argument("--deadline", type=float, default=480.0, help="seconds for all of it")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal at toy size, on any machine")
    parser.add_argument("--out", type=Path, default=Path("gpucheck"), help="folder of the results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cpu" and not given.tiny:
        print("error: no CUDA device here\nhint: --tiny rehearses the check on any machine", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        check = Check(
            size=TINY if given.tiny else REAL,
            out=given.out,
            folder=Path(folder),
            deadline=time.monotonic() + given.deadline,
            device=device,
        )
        needed = sorted(
            {need for name in METHODS for need in method_needs(name, LossConfig()) if need in TARGETS}
        )
        build_bank(check, "bank", tuple(needed))
        failed = [name for name in SECTIONS if not run_section(check, name)]
    print(
        f"{given.out / 'gpucheck.json'}: {len(check.rows)} rows" + (f"; failed: {failed}" if failed else "")
    )
    return 1 if failed else 0


def run_section(check: Check, name: str) -> bool:
    """False if it failed. One section's failure leaves the others their time."""
    work, needed_s = SECTIONS[name]
    if time.monotonic() + needed_s > check.deadline:
        check.row(name, "skipped", "its time is gone")
        return True
    began = time.monotonic()
    try:
        work(check)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows before it count
        (check.out / f"{name}-error.txt").write_text(traceback.format_exc())
        check.row(name, "failed", f"{type(error).__name__}: {str(error)[:200]}")
        return False
    check.row(name, "seconds of this section", time.monotonic() - began, "s")
    return True


if __name__ == "__main__":
    sys.exit(main())
