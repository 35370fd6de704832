"""Training runs: interrupted, resumed, on several processes, with cached targets and with an online teacher."""

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training import (
    DATASET,
    FROZEN,
    assert_same_run,
    build,
    free_port,
    interrupt_after,
    lines_of,
    small_config,
    start,
    tensors_of,
    wait_until_gone,
)

from kdcache.cache.errors import (
    KDCacheError,
    StoreDamagedError,
    StoreMismatchError,
    TrainingError,
    UsageError,
)
from kdcache.cache.storage.local import LocalObjects
from kdcache.distill import clock
from kdcache.distill.config import TrainConfig
from kdcache.distill.data import inputs
from kdcache.distill.students.student import load_student
from kdcache.distill.training import loop as train_module
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.training.loop import train

TERMS = ("ce", "aux", "logit", "feature")


@pytest.fixture
def config(shared_store, tmp_path, no_figures) -> Iterator[TrainConfig]:
    yield small_config(tmp_path / "run", shared_store, method="logit+feature")
    shutil.rmtree(tmp_path)  # 150 MB a checkpoint


@pytest.fixture(scope="module")
def whole(shared_store, tmp_path_factory) -> Iterator[TrainConfig]:
    """An uninterrupted run of `config`."""
    folder = tmp_path_factory.mktemp("whole")
    whole = small_config(folder / "run", shared_store, method="logit+feature")
    train(whole)
    yield whole
    shutil.rmtree(folder)


def test_a_run_leaves_a_whole_folder_and_the_loss_falls(shared_store, tmp_path):
    config = dataclasses.replace(
        small_config(tmp_path / "run", shared_store, method="logit+feature"),
        steps=12,
        eval_split="val",
        eval_every_steps=8,
        gradnorm_every_steps=5,
        lr=0.02,
    )
    seen = []
    result = train(config, progress=lambda *said: seen.append(said))
    assert [said[:2] for said in seen if "loss" in said[2]] == [(step, 12) for step in range(1, 13)]
    assert {said[0] for said in seen if "evaluating" in said[2]} == {8, 12}
    assert result.steps == 12 and result.training_s > 0 and not result.was_complete
    losses = [line["loss"] for line in lines_of(config)]
    assert sum(losses[-3:]) < sum(losses[:3])
    for line in lines_of(config):
        assert line["loss"] == pytest.approx(sum(line[term] for term in TERMS))
    assert [line["step"] for line in lines_of(config, "eval")] == [8, 12]
    norms = lines_of(config, "gradnorm")
    assert [line["step"] for line in norms] == [0, 5, 10]
    assert all(line[term] > 0 for line in norms for term in TERMS)
    environment = json.loads(Path(config.out, "environment.json").read_text())
    entry_bytes = 64 * 64 * 4 + 2 * (19 + 128) * 8 * 8  # crop and label, codes in half precision
    assert environment["in_flight_entry_bytes"] == entry_bytes
    assert environment["in_flight_bytes"] == 3 * config.batch_size * entry_bytes  # loaded in this process
    names = {path.name for path in Path(config.out).iterdir()}
    assert names >= {
        "config.json",
        "inputs.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoint",
        "events",
    }
    assert names >= {
        "student.safetensors",
        "scores.json",
        "report.md",
        "report.html",
        "report.json",
        "samples",
    }
    drawn = {path.stem for path in Path(config.out, "figures").iterdir()}
    assert drawn == {"losses", "miou-steps", "miou-time"}
    scores = json.loads(Path(config.out, "scores.json").read_text())["scores"]
    assert scores == result.scores and 0 <= scores["miou"] <= 1
    student = load_student(config.out)
    assert student.predict(np.zeros((40, 56, 3), np.uint8)).shape == (40, 56)
    saved = load_file(Path(config.out, "student.safetensors"))
    state = load_state(Path(config.out, "checkpoint"))["model"]
    assert all(torch.equal(value, state[f"student.{name}"]) for name, value in saved.items())
    again = train(config, resume=True)
    assert again.was_complete and again.scores == result.scores and again.steps == 12


def test_notes_say_what_the_run_does_now(shared_store, tmp_path):
    config = small_config(tmp_path / "run", shared_store, method="logit")
    config = dataclasses.replace(config, steps=5, eval_split="val", eval_every_steps=3, log_every_steps=5)
    notes = []
    train(config, progress=lambda done, total, note: notes.append((done, note)))
    begun = notes[notes.index((0, "waiting for the first batch")) + 1 :]
    assert begun[:2] == [(1, "training"), (2, "")]
    assert (3, "") in begun and begun[begun.index((4, "training")) - 1][1].startswith("evaluating")
    assert next(note for done, note in begun if done == 5).startswith("loss ")


@pytest.mark.parametrize("step", [2, 5])
def test_an_interrupted_run_goes_on_bit_by_bit(config, whole, step):
    config = dataclasses.replace(config, save_every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupt_after(step))
    train(config, resume=True)
    assert_same_run(config, whole)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_is_asked_to_end_keeps_its_last_step(config, whole, step):
    """Without periodic checkpoints: SIGTERM makes the run save."""
    asked = dataclasses.replace(config, save_every_steps=0, save_every_s=1e9)
    before = signal.getsignal(signal.SIGTERM)

    def ask(done: int, total: int, note: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(asked, progress=ask)
    saved = load_state(Path(config.out, "checkpoint"))["state"]["step"]
    assert step <= saved <= step + 1 and signal.getsignal(signal.SIGTERM) == before
    train(asked, resume=True)
    assert_same_run(asked, whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(config, whole):
    killed = dataclasses.replace(config, workers=1, save_every_steps=3)
    process = start(killed)
    metrics = Path(killed.out, "metrics.jsonl")
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_until_gone(process.pid)
    train(config, resume=True)
    assert_same_run(config, whole)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(config, tmp_path, monkeypatch):
    # Dropout depends on how crops are split over processes; without it the rest must agree, BatchNorm's statistics too.
    alone = dataclasses.replace(config, out=str(tmp_path / "alone"), batch_size=4, steps=3, lr=0.001)
    shared = dataclasses.replace(alone, out=str(tmp_path / "shared"))
    port = free_port()
    processes = [start(shared, freeze=True, rank=rank, processes=2, port=port) for rank in (0, 1)]
    monkeypatch.setattr(torch.nn.Dropout2d, "training", FROZEN, raising=False)
    train(alone)
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    for mine, theirs in zip(lines_of(alone), lines_of(shared), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    one, two = tensors_of(alone), tensors_of(shared)
    # Some gradients nearly cancel, and the order of their summation depends on the processor: 2e-3 measured.
    for name, mine in one.items():
        assert (mine.double() - two[name].double()).norm() <= 1e-2 * mine.double().norm(), name
    assert json.loads(Path(shared.out, "environment.json").read_text())["processes"] == 2


@pytest.mark.usefixtures("no_checkpoints")
def test_cache_and_teacher_give_the_same_losses(config, tmp_path, teacher_file):
    cached = dataclasses.replace(config, steps=3, lr=1e-9, min_lr=0.0)
    online = dataclasses.replace(
        cached,
        out=str(tmp_path / "online"),
        source="online",
        teacher="pspnet_resnet18",
        teacher_weights=str(teacher_file),
    )
    train(cached)
    train(online)
    # fp16 changes a target by at most 2^-11 of it, and the student, whose modes are frozen, not at all.
    for mine, theirs in zip(lines_of(cached), lines_of(online), strict=True):
        assert (mine["ce"], mine["aux"]) == (theirs["ce"], theirs["aux"])
        assert mine == pytest.approx(theirs, rel=2**-10)


@pytest.mark.usefixtures("no_checkpoints")
def test_bfloat16_gives_about_the_same_losses(config, whole):
    train(dataclasses.replace(config, mixed_precision="bf16", steps=1))
    (half,) = lines_of(config)
    single = lines_of(whole)[0]
    assert half != single
    assert [half[term] for term in TERMS] == pytest.approx([single[term] for term in TERMS], rel=0.05)


def test_crops_made_on_the_device_give_the_same_run(config, whole, monkeypatch):
    opened = inputs.ViewDataset
    monkeypatch.setattr(inputs, "ViewDataset", lambda *views, on_device: opened(*views, on_device=True))
    train(config)
    assert_same_run(config, whole)


def test_data_that_fails_costs_no_step_on_a_device_that_is_read_back_now_and_then(config, whole, monkeypatch):
    take_step = train_module.take_step

    def fail(run, *rest):
        if run.state.step == 3:
            raise KDCacheError("the store is gone")
        return take_step(run, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_is_read_back", lambda run: run.state.step % 10 == 0)  # as on CUDA
        patch.setattr(train_module, "take_step", fail)
        with pytest.raises(KDCacheError, match="the store is gone"):
            train(config)
    assert load_state(Path(config.out, "checkpoint"))["state"]["step"] == 3
    train(config, resume=True)
    mine, theirs = tensors_of(config), tensors_of(whole)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.usefixtures("no_checkpoints")
def test_images_without_labels_train_on_the_teacher_alone(config, tmp_path, teacher_file, monkeypatch):
    class Unlabelled:
        def __init__(self, images):
            self.images = images

        def __getattr__(self, name):
            return getattr(self.images, name)

        def __len__(self):
            return len(self.images)

        def label(self, index):
            return None

    opened = inputs.open_dataset
    monkeypatch.setattr(inputs, "open_dataset", lambda *names: Unlabelled(opened(*names)))
    store = build(tmp_path / "unlabelled", teacher_file, passes=1)
    config = dataclasses.replace(config, store=store, steps=10, lr=0.02)
    train(config)
    lines = lines_of(config)
    assert {line["ce"] for line in lines} == {line["aux"] for line in lines} == {0.0}
    assert sum(line["feature"] for line in lines[-3:]) < sum(line["feature"] for line in lines[:3])


def test_a_loss_that_is_not_finite_stops_the_run_by_step_entries_and_method(config):
    with pytest.raises(TrainingError) as caught:
        train(dataclasses.replace(config, lr=1e30, min_lr=0.0, save_every_steps=1))
    message = str(caught.value)
    assert "--method logit+feature" in message and "view" in message and "(entry" in message
    step = int(message.split("at step ")[1].split(";")[0])
    state = load_state(Path(config.out, "checkpoint"))
    assert state["step"] == step >= 1
    assert all(np.isfinite(line["loss"]) for line in lines_of(config))


def test_a_damaged_store_stops_the_run_in_one_line_through_a_worker(config, tmp_path, teacher_file):
    store = Path(build(tmp_path / "damaged", teacher_file, passes=1))
    for shard in (store / "passes/000/features/c").rglob("*"):
        if shard.is_file():
            data = bytearray(shard.read_bytes())
            data[len(data) // 3] ^= 1
            shard.write_bytes(data)
    with pytest.raises(StoreDamagedError) as caught:
        train(dataclasses.replace(config, store=str(store), workers=1, epochs=2, steps=None))
    assert "\n" not in str(caught.value) and "checksum" in str(caught.value)


def test_a_run_is_not_overwritten_or_mixed_with_another(config, tmp_path):
    config = dataclasses.replace(config, steps=1)
    train(config)
    with pytest.raises(UsageError, match="already contains a run") as caught:
        train(config)
    assert "--resume" in caught.value.hint
    with pytest.raises(UsageError, match=r"--lr: 0\.01, 0\.02"):
        train(dataclasses.replace(config, lr=0.02), resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="is not the folder of a run"):
        train(dataclasses.replace(config, out=str(tmp_path / "mine")))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_resuming_keeps_to_the_passes_and_to_the_store_that_it_began_with(config, tmp_path, teacher_file):
    store = build(tmp_path / "store", teacher_file, passes=1)
    whole = dataclasses.replace(config, store=store, out=str(tmp_path / "whole"))
    train(whole)
    config = dataclasses.replace(config, store=store, save_every_steps=3)
    with pytest.raises(KeyboardInterrupt):
        train(config, progress=interrupt_after(3))
    other = build(tmp_path / "other", teacher_file, passes=1, targets=("features", "logits", "aux"))
    with pytest.raises(StoreMismatchError, match="another store"):
        train(dataclasses.replace(config, store=other), resume=True)
    build(tmp_path / "store", teacher_file, passes=2)
    train(config, resume=True)
    assert_same_run(config, whole)


def test_what_cannot_work_is_refused_before_anything_is_written(config, tmp_path, teacher_file):
    only_logits = build(tmp_path / "logits", teacher_file, passes=1, targets=("logits",))
    refusals = {
        "not features": {"store": only_logits},
        "BatchNorm needs at least 2 values": {"batch_size": 1},
        "unknown method": {"method": "guess"},
        "but --dataset is streets:96x96:6": {"dataset": "streets:96x96:6"},
    }
    for said, change in refusals.items():
        with pytest.raises((UsageError, StoreMismatchError), match=said):
            train(dataclasses.replace(config, **change))
    with pytest.raises(UsageError, match="has no split 'dev'") as caught:
        train(dataclasses.replace(config, eval_split="dev"))
    assert "--eval-split ''" in caught.value.hint
    assert not Path(config.out).exists()


def test_a_run_can_be_confined_to_the_first_passes(config):
    def passes_of(config: TrainConfig) -> set[str]:
        return set(inputs.open_inputs(config, device=torch.device("cpu")).identity["manifests"])

    assert passes_of(config) == {"0", "1"}
    assert passes_of(dataclasses.replace(config, passes=1)) == {"0"}
    with pytest.raises(StoreMismatchError, match=r"--passes 3: .* has only 2 complete passes"):
        passes_of(dataclasses.replace(config, passes=3))
    with pytest.raises(UsageError, match="--passes selects passes of a store"):
        dataclasses.replace(config, method="none", source="none", fresh_views=True, passes=1)


@pytest.mark.parametrize(
    ("warm_up", "compiles", "uncounted"),
    [("steps", False, 0), ("steps", True, 1), ("all", True, 0), ("none", False, 2), ("none", True, 2)],
)
def test_what_of_a_start_counts(config, warm_up, compiles, uncounted):
    config = dataclasses.replace(config, warm_up=warm_up, compile=compiles)
    assert train_module._uncounted_steps(config) == uncounted


def test_steps_that_do_not_count_are_outside_of_the_account(config, whole):
    train(dataclasses.replace(config, warm_up="none"))
    metrics = Path(config.out, "metrics.jsonl").read_text().splitlines()
    seconds = [line["step_s"] for line in map(json.loads, metrics) if line["kind"] == "train"]
    assert seconds[:2] == [0, 0] and min(seconds[2:]) > 0
    assert_same_run(config, whole)


def test_a_profile_changes_nothing_that_is_learnt(config, whole):
    train(dataclasses.replace(config, profile=True))
    assert_same_run(config, whole)
    parts = lines_of(config, "profile")
    assert [line["step"] for line in parts] == list(range(1, 7))
    assert all(line["forward_s"] > 0 and line["backward_s"] > 0 for line in parts)
    trace = json.loads(Path(config.out, "profile", "trace.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if str(event.get("name")).startswith("Profiler")}
    assert steps >= {"ProfilerStep#4", "ProfilerStep#5"}
    assert "Where a step's time goes" in Path(config.out, "report.md").read_text()
    assert not Path(whole.out, "profile").exists()


def test_a_slow_store_that_cannot_be_written_gives_the_same_run_and_a_word_of_warning(
    config, whole, monkeypatch
):
    def slow(self, ranges):
        time.sleep(0.1)
        return read_ranges(self, ranges)

    def refuse(*_):
        raise AssertionError("training wrote into the store")

    read_ranges, said = LocalObjects.read_ranges, []
    monkeypatch.setattr(LocalObjects, "read_ranges", slow)
    monkeypatch.setattr(LocalObjects, "put_new", refuse)
    monkeypatch.setattr(LocalObjects, "remove_leftovers", refuse)
    monkeypatch.setattr(clock, "WINDOW_S", 0.0)
    monkeypatch.setattr(clock, "WINDOW_STEPS", 2)
    monkeypatch.setattr(train_module.logger, "warning", lambda text, *values: said.append(text % values))
    before = {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*")}
    train(config)
    assert_same_run(config, whole)
    assert {path: path.stat().st_mtime_ns for path in Path(config.store).rglob("*")} == before
    (warning,) = said
    # Which step, depends on the machine.
    assert "the student waited for data in" in warning and "up to step " in warning
    for advice in ("more --workers (now 0", "--check-crops sample", "--inputs jpeg", "a faster disk"):
        assert advice in warning


def test_a_store_of_other_images_is_refused_in_one_line(config, tmp_path):
    shutil.copytree(config.store, tmp_path / "store")
    images = tmp_path / "store" / "kd" / "images.json"
    images.write_text(images.read_text().replace("0", "1", 1))
    with pytest.raises(StoreMismatchError, match="differ from those of the store") as caught:
        train(dataclasses.replace(config, store=str(tmp_path / "store")))
    assert "\n" not in str(caught.value)


def test_compiling_is_refused_where_it_cannot_work(config, monkeypatch):
    def fail(function):
        raise RuntimeError("no compiler was found\nand much more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(UsageError, match=r"^--compile: torch cannot compile here: no compiler was found$"):
        train(dataclasses.replace(config, compile=True))
    assert not Path(config.out).exists()


@pytest.mark.slow
def test_a_compiled_student_starts_with_the_same_losses(config, whole):
    compiled = dataclasses.replace(config, compile=True, gradnorm_every_steps=2)
    assert start(compiled).wait(timeout=600) == 0
    mine, theirs = lines_of(compiled)[0], lines_of(whole)[0]
    assert [mine[term] for term in TERMS] == pytest.approx([theirs[term] for term in TERMS], rel=1e-4)
    assert [line["step"] for line in lines_of(compiled, "gradnorm")] == [0, 2, 4]
    with pytest.raises(UsageError, match="--compile: True, False"):
        train(dataclasses.replace(compiled, compile=False), resume=True)


def test_a_budget_fixes_its_steps_and_can_be_repeated_with_them(config):
    config = dataclasses.replace(config, steps=None, budget_seconds=4.0, method="logit")
    result = train(config)
    (line,) = lines_of(config, "budget")
    assert 0 < result.steps <= line["total_steps"] == result.planned_steps
    assert f"--steps {result.planned_steps} " in Path(config.out, "report.md").read_text()
    assert result.training_s < 4.0 + 10 * result.training_s / result.steps


def test_fresh_views_need_no_store(config):
    config = dataclasses.replace(
        config,
        store="",
        dataset=DATASET,
        method="none",
        source="none",
        fresh_views=True,
        steps=None,
        epochs=1,
    )
    assert train(config).steps == 3
    assert sorted(lines_of(config)[0]) == ["aux", "ce", "loss", "lr", "step"]
