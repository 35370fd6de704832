"""Every method with a store and with an online teacher; methods with a state interrupted, resumed, on two processes."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training import (
    FROZEN,
    SMALL_QUEUES,
    assert_same_run,
    build,
    free_port,
    interrupt_after,
    lines_of,
    small_config,
    start,
    tensors_of,
)

from kdcache.cache.errors import StoreMismatchError, UsageError
from kdcache.distill.config import TrainConfig
from kdcache.distill.data import inputs
from kdcache.distill.losses import methods
from kdcache.distill.losses.memory import CrossImageMemory
from kdcache.distill.losses.methods import METHODS
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.training.loop import train

DISTILLING = [name for name in METHODS if name != "none"]
STATEFUL = ("ifvd", "cirkd")  # a discriminator with its optimiser; queues


@pytest.fixture(autouse=True)
def small_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, slots in SMALL_QUEUES.items():
        monkeypatch.setattr(CrossImageMemory, name, slots)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, teacher_file: Path) -> str:
    targets = ("logits", "features", "aux", "backbone")
    return build(tmp_path_factory.mktemp("store") / "store", teacher_file, passes=1, targets=targets)


@pytest.fixture
def config(store: str, tmp_path: Path, no_figures: None) -> Iterator[TrainConfig]:
    yield small_config(tmp_path / "run", store, steps=2, save_every_s=0.0)
    shutil.rmtree(tmp_path)


@pytest.mark.usefixtures("no_checkpoints")
@pytest.mark.parametrize("name", DISTILLING)
def test_cache_and_teacher_give_the_same_losses(config: TrainConfig, teacher_file: Path, name: str) -> None:
    cached = dataclasses.replace(config, method=name, lr=1e-9, min_lr=0.0)
    asked = {"source": "online", "teacher": "pspnet_resnet18", "teacher_weights": str(teacher_file)}
    online = dataclasses.replace(cached, out=f"{config.out}-online", **asked)
    train(cached)
    train(online)
    adversaries = {"discriminator", "holistic"} if "holistic" in METHODS[name] else set()
    for mine, theirs in zip(lines_of(cached), lines_of(online), strict=True):
        assert {"ce", "aux", *METHODS[name], *adversaries} <= set(mine)
        terms = set(mine) - {"loss", "lr", "step", "discriminator"}
        assert mine["loss"] == pytest.approx(sum(mine[term] for term in terms))
        # fp16 changes a target by at most 2^-11 of it. A discriminator learns from that, in Adam's steps, which follow signs.
        compared = set(mine) - (adversaries if mine["step"] > 1 else set())
        for key in compared:
            assert mine[key] == pytest.approx(theirs[key], rel=2**-8, abs=1e-4), key


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_an_interrupted_run_goes_on_bit_by_bit(config: TrainConfig, name: str) -> None:
    whole = dataclasses.replace(config, method=name, steps=4, out=f"{config.out}-whole")
    train(whole)
    parts = dataclasses.replace(whole, out=config.out, save_every_steps=2)
    with pytest.raises(KeyboardInterrupt):
        train(parts, progress=interrupt_after(3))
    train(parts, resume=True)
    assert_same_run(dataclasses.replace(whole, save_every_steps=2), parts)
    mine, theirs = (load_state(Path(c.out, "checkpoint"))["rival_optimisers"] for c in (whole, parts))
    assert bool(mine) == (name == "ifvd")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATEFUL)
def test_two_processes_learn_what_one_learns(
    config: TrainConfig, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Dropout depends on how crops are split over processes; without it the rest must agree, BatchNorm's statistics too.
    alone = dataclasses.replace(config, method=name, batch_size=4, lr=0.001)
    shared = dataclasses.replace(alone, out=f"{config.out}-shared")
    port = free_port()
    processes = [start(shared, freeze=True, rank=rank, processes=2, port=port) for rank in (0, 1)]
    monkeypatch.setattr(torch.nn.Dropout2d, "training", FROZEN, raising=False)
    train(alone)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for mine, theirs in zip(lines_of(alone), lines_of(shared), strict=True):
        adversaries = {"discriminator", "holistic", "loss"} if mine["step"] > 1 else set()
        for key in set(mine) - adversaries:
            assert mine[key] == pytest.approx(theirs[key], rel=1e-4), key
    one, two = tensors_of(alone), tensors_of(shared)
    assert one.keys() == two.keys()
    for key, mine in one.items():
        if "discriminator" not in key:
            assert (mine.double() - two[key].double()).norm() <= 1e-2 * mine.double().norm(), key


@pytest.mark.slow
@pytest.mark.usefixtures("no_checkpoints")
@pytest.mark.parametrize("name", STATEFUL)
def test_bfloat16_gives_about_the_same_losses(config: TrainConfig, name: str) -> None:
    single = dataclasses.replace(config, method=name, steps=1)
    half = dataclasses.replace(single, out=f"{config.out}-half", mixed_precision="bf16")
    train(single)
    train(half)
    ((mine,), (theirs,)) = (lines_of(run) for run in (single, half))
    assert mine != theirs
    for key, value in mine.items():
        assert theirs[key] == pytest.approx(value, rel=0.05, abs=0.01), key


@pytest.mark.usefixtures("no_checkpoints")
def test_weights_that_a_run_changed_are_in_its_environment(config: TrainConfig) -> None:
    config = dataclasses.replace(config, method="skd", steps=1, kd_weight=0.5, kd_terms="pair=4,holistic=0")
    train(config)
    assert {"logit", "pair"} < set(lines_of(config)[0]) and "holistic" not in lines_of(config)[0]
    environment = json.loads(Path(config.out, "environment.json").read_text())
    assert environment["term_weights"] == {"logit": 40.0, "pair": 2.0}


@pytest.mark.usefixtures("no_checkpoints")
def test_a_store_without_a_methods_targets_is_refused_with_the_command_that_builds_one(
    config: TrainConfig, tmp_path: Path, teacher_file: Path
) -> None:
    store = build(tmp_path / "plain", teacher_file, passes=1)
    needs = {"dist": "aux", "mgd": "backbone"}
    for name, target in needs.items():
        with pytest.raises(StoreMismatchError, match=f"contains features, logits, not {target}") as caught:
            train(dataclasses.replace(config, store=store, method=name))
        command = f"--teacher pspnet_resnet18 --targets features,logits,{target}"
        assert f"kdcache build --dataset streets:64x64:6 --split train {command}" in str(caught.value.hint)
    train(dataclasses.replace(config, store=store, method="dist", kd_terms="dist_aux=0", steps=1))


@pytest.mark.parametrize("name", ["ifvd", "dkd", "cirkd"])
def test_a_method_of_labels_is_refused_where_there_are_none(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened = inputs.open_dataset

    def without_labels(*names: str | None) -> object:
        images = opened(*names)
        monkeypatch.setattr(type(images), "label", lambda self, index: None)
        return images

    monkeypatch.setattr(inputs, "open_dataset", without_labels)
    with pytest.raises(UsageError, match=f"--method {name} needs labels, and streets:64x64:6 train has none"):
        train(dataclasses.replace(config, method=name))


@pytest.mark.usefixtures("no_checkpoints")
def test_the_method_of_the_guide_trains(
    config: TrainConfig, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = re.search(
        r"### Adding a method.*?```python\n(.*?)```", (root / "distill/README.md").read_text(), re.DOTALL
    )
    assert block
    monkeypatch.setattr(methods, "METHODS", {})
    exec(block[1], {})  # noqa: S102 - the guide itself
    assert set(methods.METHODS) == {"cosine"}
    config = dataclasses.replace(config, method="cosine", steps=6, lr=0.02, kd_weight=2.0)
    train(config)
    losses = [line["cosine"] for line in lines_of(config)]
    assert losses[0] == pytest.approx(10, abs=1) and losses[-1] < losses[0]
