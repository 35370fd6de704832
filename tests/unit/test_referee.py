"""Running a comparison with fake runs that only write a run's files: order, failures, interruptions, locks."""

import dataclasses
import fcntl
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from comparisons import FEATURE, LOGIT, NONE, make_contest

from kdcache.cache.errors import UsageError
from kdcache.distill.compare import referee
from kdcache.distill.compare.account import COMPLETE, FAILED, UNFINISHED, WAITING, read_attempts
from kdcache.distill.compare.contest import COMPARISON, Contender, Contest
from kdcache.distill.compare.referee import enter, run_contest
from kdcache.distill.compare.standings import Standings
from kdcache.distill.config import TrainConfig

RUN = textwrap.dedent("""
    import json, pathlib, sys
    config, behaviour = json.loads(sys.argv[1]), sys.argv[2]
    out = pathlib.Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config))
    print("logit 1/2 loss 0.5", file=sys.stderr)
    if behaviour == "fails":
        print(json.dumps({"error": "usage", "message": "no such target", "hint": None}), file=sys.stderr)
        sys.exit(2)
    if behaviour == "crashes":
        print("RuntimeError: out of memory", file=sys.stderr)
        sys.exit(1)
    steps = config["steps"] or int(config["budget_seconds"])
    scores = {"miou": 0.5, "pixel_accuracy": 0.9, "iou": {"road": 0.5}, "images": 1, "confusion": [[1]]}
    document = {"steps": steps, "planned_steps": steps, "training_s": 1.0, "scores": scores}
    (out / "scores.json").write_text(json.dumps(document))
""")


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], list[str]]:
    """Sets how runs behave, by method. Returns a list that grows by the name of every run that starts."""

    def install(behaviours: dict[str, str]) -> list[str]:
        started: list[str] = []

        def command(config: TrainConfig, processes: int) -> list[str]:
            started.append(Path(config.out).name)
            behaviour = behaviours.get(config.method, "ends")
            return [sys.executable, "-c", RUN, json.dumps(config.to_dict()), behaviour]

        monkeypatch.setattr(referee, "run_command", command)
        return started

    return install


def quiet(line: str) -> None:
    pass


def enter_contest(
    folder: Path, contenders: tuple[Contender, ...], *, seeds: tuple[int, ...] = (0,)
) -> Contest:
    contest = make_contest(contenders, seeds=seeds)
    enter(folder, contest)
    return contest


def test_all_runs_are_started_in_order_and_none_twice(
    tmp_path: Path, behave: Callable[[dict[str, str]], list[str]]
) -> None:
    contest = enter_contest(tmp_path / "out", (NONE, LOGIT), seeds=(0, 1))
    started, said = behave({}), list[str]()
    run_contest(tmp_path / "out", contest, said.append)
    assert started == [start.name for start in contest.starts()]
    assert said[:2] == [f"run 1 of 9: {started[0]}", "logit 1/2 loss 0.5"]
    standings = Standings.read(tmp_path / "out")
    assert {account.status for account in standings.accounts} == {COMPLETE}
    assert standings.rankings[1].steps == 100  # as many as the baseline had in its time
    run_contest(tmp_path / "out", contest, quiet)
    assert len(started) == 9


def test_a_failed_run_is_on_record_and_loses_no_other(
    tmp_path: Path, behave: Callable[[dict[str, str]], list[str]]
) -> None:
    contest = enter_contest(tmp_path / "out", (NONE, LOGIT, FEATURE))
    started = behave({"logit": "fails", "feature": "crashes"})
    run_contest(tmp_path / "out", contest, quiet)
    accounts = {o.start.name: o for o in Standings.read(tmp_path / "out").accounts}
    assert accounts["time-100s-logit-seed-0"].error == "no such target"
    crashed = accounts["time-100s-feature-seed-0"]
    assert (crashed.status, crashed.error) == (FAILED, "ended with exit code 1: RuntimeError: out of memory")
    assert accounts["time-100s-none-seed-0"].status == COMPLETE
    assert "out of memory" in (tmp_path / "out/logs/time-100s-feature-seed-0.log").read_text()
    behave({})
    run_contest(tmp_path / "out", contest, quiet)
    assert {o.status for o in Standings.read(tmp_path / "out").accounts} == {COMPLETE}
    assert len(read_attempts(tmp_path / "out")["time-100s-logit-seed-0"]) == 2 and len(started) == 7


def test_without_a_baseline_nobody_knows_the_steps(
    tmp_path: Path, behave: Callable[[dict[str, str]], list[str]]
) -> None:
    contest = enter_contest(tmp_path / "out", (NONE, LOGIT))
    behave({"none": "crashes"})
    run_contest(tmp_path / "out", contest, quiet)
    accounts = {o.start.name: o for o in Standings.read(tmp_path / "out").accounts}
    assert accounts["time-100s-logit-seed-0"].status == COMPLETE
    assert "no finished run of none" in (accounts["steps-of-100s-logit-seed-0"].error or "")


def test_an_interruption_ends_the_run_and_leaves_the_rest_waiting(
    tmp_path: Path, behave: Callable[[dict[str, str]], list[str]]
) -> None:
    contest = enter_contest(tmp_path / "out", (NONE, LOGIT))
    behave({"none": "crashes", "logit": "crashes"})

    def interrupt(line: str) -> None:
        if "loss" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_contest(tmp_path / "out", contest, interrupt)
    first, *others = Standings.read(tmp_path / "out").accounts
    assert (first.status, first.error) == (UNFINISHED, None) and (first.wall_s or 0) > 0
    assert {account.status for account in others} == {WAITING}


def test_a_folder_takes_one_comparison_at_a_time(tmp_path: Path) -> None:
    contest = enter_contest(tmp_path / "out", (NONE, LOGIT))
    descriptor = os.open(tmp_path / "out" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="a comparison is running in"):
        run_contest(tmp_path / "out", contest, quiet)
    os.close(descriptor)


def test_another_comparison_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    enter(tmp_path / "out", make_contest((NONE, LOGIT)))
    moved = make_contest((NONE, LOGIT))
    moved = dataclasses.replace(moved, run={**moved.run, "workers": 3})
    enter(tmp_path / "out", moved)
    assert json.loads((tmp_path / "out" / COMPARISON).read_text())["run"]["workers"] == 3
    other = dataclasses.replace(moved, run={**moved.run, "lr": 0.02})
    with pytest.raises(UsageError, match=r"another comparison.*\n  --lr: 0.01, 0.02$"):
        enter(tmp_path / "out", other)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(UsageError, match="contains files that are not a comparison's"):
        enter(tmp_path / "other", make_contest((NONE, LOGIT)))


def test_an_extension_runs_what_is_missing_alone(
    tmp_path: Path, behave: Callable[[dict[str, str]], list[str]]
) -> None:
    out, started = tmp_path / "out", behave({})
    run_contest(out, enter(out, make_contest((NONE, LOGIT), seeds=(0,))), quiet)
    before = list(started)
    extended = enter(out, make_contest((FEATURE,), seeds=(0, 1)))
    run_contest(out, extended, quiet)
    assert started[len(before) :] == [s.name for s in extended.starts() if s.name not in before]
    standings = Standings.read(out)
    assert {account.status for account in standings.accounts} == {COMPLETE}
    rows = {row.contender: sorted(row.by_seed) for row in standings.rankings[0].rows}
    assert rows == {"none": [0, 1], "logit": [0], "feature": [0, 1]}
    assert [noise.again for noise in standings.noise] == [1, 2]


def test_what_is_running_cannot_be_extended(tmp_path: Path) -> None:
    enter_contest(tmp_path / "out", (NONE, LOGIT))
    descriptor = os.open(tmp_path / "out" / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="a comparison is running in"):
        enter(tmp_path / "out", make_contest((NONE, FEATURE)))
    os.close(descriptor)
    assert len(json.loads((tmp_path / "out" / COMPARISON).read_text())["asks"]) == 1


def test_a_run_is_started_by_the_command_line_of_its_configuration() -> None:
    config = TrainConfig(out="a b", method="logit", store="stores/x", steps=4, seed=1)
    words = referee.run_command(config, 1)
    assert words[:4] == [sys.executable, "-m", "kdcache.cli", "distill"] and words[-2:] == [
        "--resume",
        "--json",
    ]
    assert "a b" in words and words[words.index("--seed") + 1] == "1"
    assert "accelerate.commands.launch" in referee.run_command(config, 2)
