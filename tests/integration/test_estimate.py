"""Estimates from the command line: their figures, the builds that follow, and that they leave nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch

from kdcache.cache.build.build import plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.build.plan import measure_plan
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.teachers.teacher import load_teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.study.trial import time_student

Run = Callable[..., tuple[int, str, str]]

FACTORY = '''
"""A teacher of one seeded convolution."""
import torch
from torch import nn
from kdcache.cache.teachers.teacher import FactoryTeacher


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 19, 8, stride=8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.conv.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10

    def forward(self, images):
        return {"logits": self.conv(images), "features": self.conv(images)[:, :8]}


def make():
    return FactoryTeacher(module=Tiny(), version="1")
'''


@pytest.fixture
def request_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a small store with a factory's teacher, in a home that does not exist yet."""
    monkeypatch.setattr("kdcache.distill.study.trial._TIMED", 1)  # tests do not depend on steady times
    (tmp_path / "estimated_teacher.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    return [
        *("--dataset", "streets:48x96:10", "--teacher", "estimated_teacher:make", "--force"),
        *("--device", "cpu", "--batch-size", "2", "--unit-entries", "4", "--views", "2"),
        *("--home", str(tmp_path / "new" / "home")),
    ]


def estimate(kdcache: Run, words: list[str], *more: str) -> dict:
    code, out, err = kdcache("estimate", *words, "--student-batch-size", "2", "--json", *more)
    assert code == 0, err
    return json.loads(out)


def test_an_estimate_leaves_nothing_behind(kdcache: Run, request_words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    document = estimate(kdcache, request_words)
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in str(path)]
    assert after == before
    assert fsspec.filesystem("memory").find("/kdcache") == []
    assert document["store"].startswith(str(tmp_path / "new" / "home" / "streets"))


def test_the_document_adds_up(kdcache: Run, request_words: list[str]) -> None:
    prices = ["--usd-gb-month", "1000", "--usd-1000-gets", "2", "--usd-gb-traffic", "3000"]
    document = estimate(kdcache, request_words, "--steps", "100", "--runs", "3", *prices)
    sizes = document["bytes_per_view"]
    assert set(sizes) == {"views", "logits", "features"}
    assert (document["entries"], document["entries_left"], document["units"]) == (20, 20, 6)
    assert document["bytes_by_array"] == {name: 20 * size for name, size in sizes.items()}
    assert document["bytes"] == document["bytes_left"] == 20 * sum(sizes.values())
    assert document["fits"] and document["free_bytes"] > document["bytes"]
    assert document["images"] is None  # drawn ones have no files to decode
    build, student, read = document["build"], document["student"], document["read"]
    assert build["batches_left"] == 2 * (2 + 2 + 1)
    assert build["seconds"] >= build["calibration_s"] + build["batches_left"] * build["seconds_per_batch"] > 0
    assert (student["name"], student["method"]) == ("pspnet_resnet18", "logit+feature")
    assert read["bytes_per_view"] == sum(sizes.values())
    assert read["needed_bytes_per_s"] == pytest.approx(2 * sum(sizes.values()) / student["step_s"])
    assert read["given_bytes_per_s"] == document["storage"]["read_bytes_per_s"] > 0
    paid_back = document["paid_back"]
    assert paid_back["steps"] == -(-build["seconds"] // student["teacher_s"])
    assert paid_back["saved_s"] == pytest.approx(300 * student["teacher_s"] - build["seconds"])
    s3 = document["s3"]
    assert s3["epoch_requests"] == 3 * 3 and s3["epochs"] == 3 * 100 * 2 / 10
    assert s3["usd_month"] == pytest.approx(document["bytes"] / 2**30 * 1000)
    assert s3["usd_epoch"] == pytest.approx(0.009 * 2 + 10 * sum(sizes.values()) / 2**30 * 3000)


def test_prices_are_those_of_s3_within_a_region_by_default(kdcache: Run, request_words: list[str]) -> None:
    s3 = estimate(kdcache, [*request_words, "--targets", "logits"])["s3"]
    assert (s3["usd_gb_month"], s3["usd_1000_gets"], s3["usd_gb_traffic"]) == (0.023, 0.0004, 0)
    assert s3["usd_epoch"] == pytest.approx(2 * 3 / 1000 * 0.0004)


def test_the_table_says_the_same_to_people(kdcache: Run, request_words: list[str]) -> None:
    words = [*request_words, "--student-batch-size", "2", "--targets", "logits"]
    code, out, err = kdcache("estimate", *words)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["array", "views", "logits", "all"]
    for words in (
        "views      20, of which 20 are not built yet",
        "calibration",
        "with the teacher running at every step",
        "the storage gives one reader",
        "1 run of 40000 steps: save",
        "at 0.0230 USD a GB and month, 0.0004 USD for 1000 GETs, 0.00 USD a GB of traffic",
    ):
        assert words in out


def test_of_a_store_that_stands_only_what_is_left_counts(kdcache: Run, request_words: list[str]) -> None:
    one = [*request_words, "--views", "1"]
    assert kdcache("build", *one)[0] == 0
    done = estimate(kdcache, one)
    assert (done["entries_left"], done["build"]["seconds"], done["paid_back"]["steps"]) == (0, 0, 0)
    more = estimate(kdcache, request_words)
    assert (more["entries"], more["entries_left"], more["units_committed"]) == (20, 10, 3)
    assert more["bytes_left"] == more["bytes"] / 2
    assert more["build"]["calibration_s"] == 0 and more["build"]["seconds"] > 0


def test_a_student_that_cannot_train_is_refused_before_the_teacher_runs(
    kdcache: Run, request_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcache.cache.build.plan.measure_plan", None)
    code, out, err = kdcache("estimate", *request_words, "--student-batch-size", "1")
    assert (code, out) == (2, "")
    assert "--student-batch-size 1 leaves 1 crop" in err and "hint: --student-batch-size 2 or more" in err


def test_several_processes_are_refused(kdcache: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = SimpleNamespace(state=SimpleNamespace(num_processes=2))
    monkeypatch.setattr("kdcache.cli.estimate.open_request", lambda given: launched)
    code, _, err = kdcache("estimate", "--dataset", "streets")
    assert code == 2
    assert "hint: run it without `accelerate launch`" in err


def test_images_without_labels_can_be_estimated(request_words: list[str]) -> None:
    images = open_dataset("streets:48x96:10", None, "train")

    class Unlabelled(type(images)):
        def label(self, index):
            return None

    images.__class__ = Unlabelled
    teacher = load_teacher("estimated_teacher:make", weights=None, dataset_name="", classes=19, device="cpu")
    policy = view_policy("streets:48x96:10")
    spec = plan_store(images, teacher, policy, seed=0, targets={"logits": "uniform"})
    lines: list[str] = []
    plan = measure_plan(
        spec, images, teacher, passes=1, options=BuildOptions(batch_size=2), report=lines.append
    )
    assert "no labels" in lines[0]
    trial = time_student(
        images,
        spec,
        teacher,
        plan.codecs,
        student="pspnet_resnet18",
        method="logit",
        batch_size=2,
    )
    assert trial.step_s > 0 and trial.teacher_s > 0


def test_a_build_says_what_is_left_and_refuses_a_disk_that_is_too_small(
    kdcache: Run, request_words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random teacher is not better than chance, and only --force accepts that. This test is not about the check.
    monkeypatch.setattr("kdcache.cache.build.calibrating.require_sane", lambda check: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    words = [word for word in request_words if word != "--force"]
    code, out, err = kdcache("build", *words)
    assert (code, out) == (2, "")
    assert "left: 20 entries, " in err and "about" in err and "1 kB are free" in err
    assert "bytes are left to write and 1,000 are free" in err
    assert (
        "hint: choose fewer --views, --targets logits or another --home; or build anyway with --force" in err
    )
    (store,) = (tmp_path / "new" / "home").iterdir()
    assert not (store / "passes").exists() and not (store / "kd" / "goals").exists()
    code, out, err = kdcache("build", *words, "--dry-run")
    assert code == 0 and "1 kB: not enough, `build` will refuse" in out
    code, _, err = kdcache("build", *request_words)
    assert code == 0, err
    assert kdcache("build", *words)[0] == 0  # nothing is left to write


@pytest.mark.slow
def test_the_bytes_are_those_of_the_build(kdcache: Run, tmp_path: Path) -> None:
    images = open_dataset("streets:128x256:32", None, "train")
    torch.manual_seed(0)
    network = build_network(network_config("pspnet_resnet18", len(images.classes.names)))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one batch is enough for outputs of ordinary size
    crops = torch.from_numpy(np.stack([images.image(index) for index in range(4)]))
    network.train()(RGB_IMAGENET(crops, None))
    save_network(tmp_path / "teacher.safetensors", network, normalisation=RGB_IMAGENET)
    words = ["--dataset", images.name, "--teacher", "pspnet_resnet18", "--force", "--device", "cpu"]
    words += ["--weights", str(tmp_path / "teacher.safetensors"), "--home", str(tmp_path / "home")]
    foreseen = estimate(kdcache, words)
    code, out, err = kdcache("build", *words, "--json")
    assert code == 0, err
    built = json.loads(out)
    assert foreseen["bytes"] == pytest.approx(built["bytes"], rel=0.1)
    for name, size in built["bytes_per_view"].items():
        assert foreseen["bytes_per_view"][name] == pytest.approx(size, rel=0.1), name
