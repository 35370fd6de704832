"""Comparisons of real runs in processes of their own: a ranking, a failure, a resumed run, a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from training import wait_until_gone

from kdcache.distill.compare.account import read_attempts
from kdcache.distill.training.checkpoint import load_state

SMALL = (
    *("--backbone-weights", "none", "--batch-size", "2", "--device", "cpu", "--workers", "0"),
    *("--gradnorm-every", "0", "--log-every", "1"),
)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def one_thread_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "out"
    shutil.rmtree(tmp_path)  # 150 MB a checkpoint


@pytest.mark.slow
def test_methods_are_compared_and_a_failed_one_loses_no_other(
    kdcache: Run, shared_store: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDCACHE_DISTILL_LR", "nonsense")  # of another command: a run must not use it
    arguments = ["compare", "--methods", "none,logit,mgd", "--steps", "2", "--no-fresh-views", *SMALL]
    arguments += ["--store", shared_store, "--out", str(out)]
    code, stdout, stderr = kdcache(*arguments)
    assert code == 3, stderr
    assert (
        "1 of 4 runs failed: steps-2-mgd-seed-0" in stderr
        and "contains features, logits, not backbone" in stderr
    )
    document = json.loads((out / "standings.json").read_text())
    ranks = {row["contender"]: row["rank"] for row in document["rankings"][0]["rows"]}
    assert set(ranks) == {"none-bank", "logit", "mgd"} and ranks["mgd"] is None
    assert {ranks["none-bank"], ranks["logit"]} == {1, 2} and "logit" in stdout
    rows = {row["contender"]: row for row in document["rankings"][0]["rows"]}
    assert rows["logit"]["difference"]["separable"] is None and rows["logit"]["steps"] == 2
    assert document["noise"][0]["miou"][0] == document["noise"][0]["miou"][1]  # the same run, bit by bit
    assert not (out / "runs/steps-2-logit-seed-0/checkpoint").exists()
    assert (out / "runs/steps-2-logit-seed-0/student.safetensors").exists()
    runs = {run["name"]: run for run in document["runs"]}
    logit = runs["steps-2-logit-seed-0"]
    assert logit["evaluation_s"] > 0 and logit["saving_s"] > 0 and logit["startup_s"] > 0
    assert {cost["contender"] for cost in document["costs"]} == {"none-bank", "logit"}
    with open(out / "standings.csv") as file:
        table = {line["name"]: line for line in csv.DictReader(file)}
    assert table.keys() == runs.keys() and table["steps-2-mgd-seed-0"]["status"] == "failed"
    assert "### Runs that failed" in (out / "report.md").read_text()
    assert "contains features, logits, not backbone" in (out / "report.html").read_text()

    code, _, stderr = kdcache(*arguments, "--lr", "0.02")
    assert code == 2 and "--lr: 0.01, 0.02" in stderr

    code, _, stderr = kdcache(*arguments, "--views", "1,9")
    assert code == 11 and "--views 9" in stderr and "has 2 complete passes" in stderr

    code, stdout, _ = kdcache(*arguments, "--dry-run")
    assert code == 0 and [line.split()[1] for line in stdout.splitlines()[1:5]] == list(runs)


@pytest.mark.slow
def test_an_extension_keeps_what_stands(kdcache: Run, shared_store: str, out: Path) -> None:
    arguments = ["compare", "--no-fresh-views", *SMALL, "--store", shared_store, "--out", str(out)]
    code, _, stderr = kdcache(*arguments, "--methods", "none,logit", "--steps", "2")
    assert code == 0, stderr
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/scores.json")}
    more = [*arguments, "--methods", "feature", "--steps", "2,3"]
    code, stdout, stderr = kdcache(*more, "--dry-run")
    assert code == 0 and "4 of 7 runs left" in stdout and stdout.count("complete") == 3, stderr
    code, _, stderr = kdcache(*more)
    assert code == 0 and "3 of 7 runs are complete" in stderr
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    document = json.loads((out / "standings.json").read_text())
    rows = {r["rung"]: {row["contender"] for row in r["rows"]} for r in document["rankings"]}
    assert rows == {"steps-2": {"none-bank", "logit", "feature"}, "steps-3": {"none-bank", "feature"}}
    assert "| method | 2 steps | 3 steps |" in (out / "report.md").read_text()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_from_the_checkpoint(shared_store: str, out: Path) -> None:
    command = [sys.executable, "-m", "kdcache.cli", "compare", "--methods", "none", "--steps", "30"]
    command += ["--no-fresh-views", *SMALL, "--save-every", "2", "--store", shared_store, "--out", str(out)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    first = out / "runs" / "steps-30-none-bank-seed-0"
    while process.poll() is None and load_state(first / "checkpoint") is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    wait_until_gone(process.pid)
    assert not (first / "scores.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    attempts = read_attempts(out)[first.name]
    assert [attempt["exit_code"] for attempt in attempts] == [None, 0]
    document = json.loads((out / "standings.json").read_text())
    one, again = document["noise"][0]["miou"]
    assert one == again  # resumed and uninterrupted: the same bytes


@pytest.mark.slow
def test_both_clocks_with_the_teacher_and_few_views(
    kdcache: Run, shared_store: str, teacher_file: Path, out: Path
) -> None:
    arguments = ["compare", "--methods", "none,logit", "--views", "1", "--online", "logit", "--budget", "2s"]
    arguments += ["--teacher", "pspnet_resnet18", "--weights", str(teacher_file), *SMALL]
    code, stdout, stderr = kdcache(*arguments, "--store", shared_store, "--out", str(out), "--json")
    assert code == 0, stderr
    document = json.loads(stdout)
    by_time, by_steps = document["rankings"]
    names = {"none", "none-bank", "logit-views-1", "logit-online"}
    assert {row["contender"] for row in by_time["rows"]} == names
    assert {row["steps"] for row in by_steps["rows"]} == {by_steps["steps"]}
    assert all(row["training_s"] > 1.5 for row in by_time["rows"])
    costs = {cost["contender"]: cost for cost in document["costs"]}
    assert costs["logit-online"]["teacher_s"] is not None  # its sign depends on the machine
    cost, built_s = document["teacher"]["cost"], document["teacher"]["build_s"][0]
    assert (cost["build_s"], cost["shared_s"]) == pytest.approx((built_s, built_s / 2))
    assert (cost["passes"], cost["runs"]) == (1, 2)
    pinned = json.loads((out / "runs" / "time-2s-logit-views-1-seed-0" / "inputs.json").read_text())
    assert list(pinned["manifests"]) == ["0"]
