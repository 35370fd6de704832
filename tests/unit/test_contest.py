"""The definition of a comparison: rows, lengths, the order of runs, and the differences of a changed request."""

import dataclasses
import json

import pytest
from comparisons import BANK, FEATURE, LOGIT, NONE, ONLINE, make_ask, make_contest

from kdcache.cache.errors import UsageError
from kdcache.distill.compare.contest import Contest, Rung, find_steps, make_contenders, make_rungs


def test_the_baseline_comes_first_and_has_a_row_on_the_stores_views() -> None:
    rows = make_contenders(["logit", "none", "cwd"], online=["logit"])
    assert [row.name for row in rows] == ["none", "none-bank", "logit", "cwd", "logit-online"]
    assert [row.fresh_views for row in rows] == [True, False, False, False, True]
    assert [row.source for row in rows] == ["none", "none", "cache", "cache", "online"]
    rows = make_contenders(["none", "logit"], views=[1, 4], fresh_views=False)
    assert [row.name for row in rows] == ["none-bank", "logit-views-1", "logit-views-4"]
    assert [row.passes for row in rows] == [None, 1, 4]


def test_lengths_become_rungs() -> None:
    assert [rung.name for rung in make_rungs([60, 120], [])] == [
        *("time-60s", "time-120s", "steps-of-60s", "steps-of-120s"),
    ]
    assert [rung.name for rung in make_rungs([60], [500])] == ["time-60s", "steps-500"]
    assert [rung.name for rung in make_rungs([], [500])] == ["steps-500"]
    assert [rung.name for rung in make_rungs([60], [], ["time"])] == ["time-60s"]
    for lengths in (([], [], []), ([60], [], ["steps"]), ([60], [500], ["time"]), ([], [500], ["time"])):
        with pytest.raises(UsageError):
            make_rungs(*lengths)


def test_rounds_hold_every_contender_once_in_an_order_of_their_own() -> None:
    contest = make_contest((NONE, LOGIT, FEATURE), seeds=range(6))
    starts = contest.starts()
    assert len({start.name for start in starts}) == len(starts) == 6 * 2 * 3 + 1
    rounds = [starts[i : i + 3] for i in range(0, 36, 3)]
    for of_round in rounds:
        assert {start.contender for start in of_round} == set(contest.contenders)
        assert len({(start.seed, start.rung) for start in of_round}) == 1
    assert len({tuple(start.contender for start in of_round) for of_round in rounds}) > 2
    assert [start.rung.clock for start in starts[:6]] == ["time"] * 3 + ["steps"] * 3
    assert (starts[-1].again, starts[-1].contender, starts[-1].seed) == (1, NONE, 0)
    assert starts == make_contest((NONE, LOGIT, FEATURE), seeds=range(6)).starts()


def test_a_start_is_a_run_of_distill() -> None:
    contest = make_contest((NONE, LOGIT))
    by_time = next(start for start in contest.starts() if start.name == "time-100s-none-seed-1")
    config = contest.config(by_time, "out")
    assert (config.method, config.source, config.fresh_views, config.seed) == ("none", "none", True, 1)
    assert (config.budget_seconds, config.steps, config.store) == (100, None, "stores/ab")
    by_steps = next(start for start in contest.starts() if start.name == "steps-of-100s-logit-seed-2")
    config = contest.config(by_steps, "out", 44)
    assert (config.method, config.source, config.budget_seconds, config.steps) == ("logit", "cache", None, 44)


def test_runs_keep_to_the_views_that_the_store_had_at_first() -> None:
    contest = make_contest((NONE, BANK, LOGIT, dataclasses.replace(LOGIT, passes=1)))
    by_name = {s.contender.name: contest.config(s, "out", 5).passes for s in contest.starts()}
    assert by_name == {"none": None, "none-bank": 2, "logit": 2, "logit-views-1": 1}
    grown = dataclasses.replace(contest, passes=4)
    assert contest.extended(grown).passes == 2


def test_a_method_takes_the_weights_and_the_temperature_that_it_has() -> None:
    contest = make_contest((NONE, LOGIT, FEATURE))
    options = {"kd_terms": "logit=2,feature=0.5", "temperature": 4.0}
    contest = dataclasses.replace(contest, run={**contest.run, **options})
    by_method = {s.contender.method: contest.config(s, "out", 5) for s in contest.starts()}
    found = {method: (config.kd_terms, config.temperature) for method, config in by_method.items()}
    assert found == {"none": ("", None), "logit": ("logit=2.0", 4.0), "feature": ("feature=0.5", None)}


def test_steps_are_those_of_the_baselines_first_seed() -> None:
    contest, rung = make_contest((NONE, LOGIT)), Rung(clock="steps", budget_s=100.0)
    assert find_steps(contest, rung, {"time-100s-none-seed-1": 7}) is None
    assert find_steps(contest, rung, {"time-100s-none-seed-0": 9}) == 9
    assert find_steps(contest, Rung(clock="steps", steps=5), {}) == 5


def test_a_contest_says_the_command_that_asks_for_it() -> None:
    contest = make_contest((NONE, BANK, LOGIT, ONLINE), budgets_s=(100, 3600), seeds=(0, 1))
    contest = dataclasses.replace(contest, run={**contest.run, "lr": 0.02})
    assert contest.commands() == [
        (
            "kdcache compare --methods none,logit --online logit --budget 100s,3600s --clock time,steps --seeds 2 "
            "--processes 1 --store stores/ab --backbone-weights none --teacher pspnet_resnet101 --lr 0.02"
        )
    ]
    (alone,) = make_contest((BANK, dataclasses.replace(LOGIT, passes=2))).commands()
    assert "--views 2" in alone and "--no-fresh-views" in alone


def test_a_contest_survives_json() -> None:
    contest = make_contest()
    again = Contest.from_dict(json.loads(json.dumps(contest.to_dict())))
    assert again == contest and again.differences(contest) == []


def test_more_methods_seeds_and_lengths_extend_it() -> None:
    contest = make_contest((NONE, LOGIT), seeds=(0,))
    asked = make_contest((FEATURE,), budgets_s=(100.0, 200.0), seeds=(0, 1))
    assert contest.differences(asked) == []
    both = contest.extended(asked)
    assert both.baseline == NONE and both.contenders == [NONE, LOGIT, FEATURE] and both.seeds == [0, 1]
    assert [rung.name for rung in both.rungs] == [
        *("time-100s", "time-200s", "steps-of-100s", "steps-of-200s"),
    ]
    before, after = contest.starts(), both.starts()
    assert after[: len(before)] == before and len({start.name for start in after}) == len(after)
    added = {(start.contender.name, start.rung.name, start.seed) for start in after[len(before) : -1]}
    wanted = {(c, rung.name, seed) for c in ("none", "feature") for rung in both.rungs for seed in (0, 1)}
    assert added == wanted - {("none", "time-100s", 0), ("none", "steps-of-100s", 0)}
    assert [len(command.split("--seeds")) for command in both.commands()] == [2, 2]


def test_what_was_asked_before_adds_nothing() -> None:
    contest = make_contest((NONE, LOGIT, FEATURE), budgets_s=(100.0, 200.0), seeds=(0, 1))
    assert contest.extended(contest) == contest
    assert contest.extended(make_contest((LOGIT,), seeds=(0,))).asks == contest.asks


def test_every_extension_ends_with_the_baseline_again() -> None:
    contest = make_contest((NONE, LOGIT), budgets_s=(100.0, 200.0), seeds=(0,))
    repeated = [start.name for start in contest.starts() if start.again]
    assert repeated == ["time-100s-none-seed-0-repeated", "time-200s-none-seed-0-repeated"]
    more = contest.extended(make_contest((NONE, LOGIT), budgets_s=(100.0, 200.0), seeds=(0, 1)))
    assert more.starts()[-1].name == "time-100s-none-seed-0-repeated-2"  # the shortest, to keep the price low
    longer = more.extended(make_contest((NONE,), budgets_s=(200.0, 400.0), seeds=(0,)))
    assert longer.starts()[-1].name == "time-400s-none-seed-0-repeated"
    assert sum(start.again > 0 for start in longer.starts()) == 4


def test_an_extension_may_bring_what_is_known_of_the_teacher() -> None:
    offline = make_contest((NONE, LOGIT))
    offline = dataclasses.replace(offline, run={**offline.run, "teacher": ""}, teacher={"miou": 0.8})
    asked = dataclasses.replace(make_contest((NONE, ONLINE)), teacher={"build_s": [1.0, 2.0]})
    assert offline.differences(asked) == []
    both = offline.extended(asked)
    assert both.run["teacher"] == "pspnet_resnet101" and both.teacher == {"miou": 0.8, "build_s": [1.0, 2.0]}
    again = both.extended(offline)
    assert again.run["teacher"] == "pspnet_resnet101"  # online runs that are still to come need it
    other = dataclasses.replace(asked, run={**asked.run, "teacher": "pspnet_resnet50"})
    assert both.differences(other) == ["--teacher: pspnet_resnet101, pspnet_resnet50"]


def test_differences_name_what_changed_and_nothing_free() -> None:
    contest = make_contest((NONE, LOGIT))
    moved = dataclasses.replace(
        contest, run={**contest.run, "store": "elsewhere", "workers": 3, "momentum": 0.9}
    )
    assert contest.differences(moved) == []
    changed = dataclasses.replace(contest, processes=2, run={**contest.run, "lr": 0.02})
    assert contest.differences(changed) == ["--processes: 1, 2", "--lr: 0.01, 0.02"]


def test_nothing_stands_twice() -> None:
    with pytest.raises(UsageError, match=r"contenders, each once; got \['none', 'none'\]"):
        make_ask((NONE, NONE))
    with pytest.raises(UsageError, match="seeds, each once"):
        make_ask((NONE, LOGIT), seeds=())
