"""Standings of made-up comparisons: every number can be computed by hand from tests/comparisons.py."""

import csv
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from comparisons import (
    BANK,
    EVALUATION_S,
    FEATURE,
    LOGIT,
    NONE,
    ONLINE,
    SAVING_S,
    STARTUP_S,
    make_ask,
    make_comparison,
    make_contest,
)

from kdcache.cache.errors import NotFoundError, UsageError
from kdcache.distill.compare.account import COMPLETE, FAILED, WAITING
from kdcache.distill.compare.breakdown import Ladder, Views
from kdcache.distill.compare.contest import Contender
from kdcache.distill.compare.ranking import Move, pair_clocks
from kdcache.distill.compare.report import make_report, write_standings
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.tables import noise_tables, ranking_table, teacher_cost_tables
from kdcache.distill.compare.verdict import conclude
from kdcache.distill.losses.methods import METHODS
from kdcache.distill.report.charts import DotChart, LineChart, RankChart
from kdcache.distill.report.markdown import markdown
from kdcache.distill.report.model import Table
from kdcache.distill.report.styles import Style, give_styles
from kdcache.distill.report.terminal import show


@pytest.fixture(scope="module")
def standings(tmp_path_factory: pytest.TempPathFactory) -> Standings:
    return Standings.read(make_comparison(tmp_path_factory.mktemp("made-up") / "out", make_contest()))


def test_methods_are_ranked_on_both_clocks(standings: Standings) -> None:
    by_time, by_steps = standings.rankings
    assert [row.contender for row in by_time.rows] == [
        "logit",
        "logit-online",
        "feature",
        "none",
        "none-bank",
    ]
    assert [row.contender for row in by_steps.rows] == [
        "feature",
        "logit",
        "logit-online",
        "none",
        "none-bank",
    ]
    assert [row.rank for row in by_time.rows] == [1, 2, 3, 4, 5]
    assert by_time.steps is None and by_steps.steps == 200
    logit = by_time.rows[0]
    assert logit.miou == pytest.approx(0.601) and logit.steps == 160
    assert logit.by_seed == pytest.approx({0: 0.6, 1: 0.601, 2: 0.602})
    assert logit.class_iou == pytest.approx({"road": 0.701, "car": 0.501, "sky": None})
    assert logit.over_teacher == pytest.approx(0.601 / 0.8)


def test_what_changed_place_is_named(standings: Standings) -> None:
    where = {"time_rung": "time-100s", "steps_rung": "steps-of-100s"}
    assert list(standings.moves) == [
        Move(contender="logit", by_time=1, by_steps=2, **where),
        Move(contender="logit-online", by_time=2, by_steps=3, **where),
        Move(contender="feature", by_time=3, by_steps=1, **where),
    ]


def test_differences_are_paired_by_seed(standings: Standings) -> None:
    rows = {row.contender: row for row in standings.rankings[0].rows}
    assert rows["none"].difference is None
    difference = rows["logit"].difference
    assert difference is not None and difference.pairs == 3 and difference.separable
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_step_is_priced_by_part(standings: Standings) -> None:
    costs = {cost.contender: cost for cost in standings.costs}
    assert costs["none"].over_baseline == 1 and costs["logit"].over_baseline == pytest.approx(1.25)
    assert costs["logit"].parts == pytest.approx(
        {
            "data wait": 0.0625,
            "copy to the device": 0,
            "forward and loss": 0.25,
            "backward": 0.25,
            "optimiser": 0.03125,
            "other": 0.03125,
        }
    )
    assert costs["logit"].student_s == pytest.approx(0.85 * 0.5)
    assert costs["logit"].loss_s == pytest.approx(0.85 * 0.125)
    assert costs["logit"].teacher_s is None and costs["none"].loss_s is None
    assert costs["logit-online"].loss_s == pytest.approx(0.85 * 0.125)
    assert costs["logit-online"].teacher_s == pytest.approx(0.85 * 1.375)


def test_noise_is_the_baseline_twice(standings: Standings) -> None:
    (noise,) = standings.noise
    assert (noise.rung, noise.seed, noise.steps) == ("time-100s", 0, (200, 181))
    assert noise.miou == (0.5, 0.5) and noise.step_drift == pytest.approx(0.1)


def test_what_the_numbers_do_not_say_is_said(standings: Standings, tmp_path: Path) -> None:
    short, drift = standings.cautions
    assert short.startswith(
        'After 1 min 40 s of training, "logit, teacher at every step" had fewer than 100 steps'
    )
    assert drift.startswith("In the runs of 1 min 40 s, a step of the baseline took 10 % longer at the end")
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT), seeds=(0,)))
    contest = json.loads((folder / "comparison.json").read_text())
    contest["teacher"]["miou"] = 0.51
    (folder / "comparison.json").write_text(json.dumps(contest))
    run = folder / "runs" / "time-100s-logit-seed-0"
    place = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps({**place, "device": "another"}))
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps({**scores, "planned_steps": scores["planned_steps"] + 1}))
    assert [caution.partition(":")[0] for caution in Standings.read(folder).cautions[1:]] == [
        "The time of 1 run was up before the learning rate had reached its last value",
        "The runs differ in device.",
        "The teacher is less than 2 points of mIoU above the baseline (51.00 % against 50.00 %)",
    ]


def shorten(folder: Path, run: str, steps: int) -> None:
    """Make a run one of fewer steps."""
    path = folder / "runs" / run / "scores.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "steps": steps, "planned_steps": steps}))


def in_all_renderings(folder: Path, caution: str) -> bool:
    """Whether what `compare` writes and prints has a caution: HTML, Markdown, JSON, CSV, terminal."""
    report = make_report(folder, write_standings(folder))
    said: list[str] = []
    console = SimpleNamespace(line=said.append, table=lambda header, rows, optional: None)
    show(report, console)
    with open(folder / "standings.csv") as file:
        said_by_csv = next(csv.DictReader(file))["cautions"]
    markdown_text = (folder / "report.md").read_text().replace("\\", "")
    page = unescape((folder / "report.html").read_text())
    document = json.loads((folder / "standings.json").read_text())
    return all(
        caution in text
        for text in (page, markdown_text, "\n".join(document["cautions"]), said_by_csv, "\n".join(said))
    )


def test_people_read_labels_and_programs_read_names(tmp_path: Path) -> None:
    contest = make_contest(
        (NONE, BANK, LOGIT, FEATURE, ONLINE, replace(LOGIT, passes=1)), budgets_s=(100.0, 200.0)
    )
    folder = make_comparison(tmp_path / "out", contest)
    report = make_report(folder, write_standings(folder))
    said: list[str] = []
    console = SimpleNamespace(
        line=said.append,
        table=lambda header, rows, optional: said.extend(cell for row in [header, *rows] for cell in row),
    )
    show(report, console)
    read = ["\n".join(said), (folder / "report.md").read_text(), (folder / "report.html").read_text()]
    read += [figure.read_text() for figure in folder.glob("figures/*.svg")]
    runs = re.compile(r"[\w./-]+-seed-\d(-repeated)?")  # the names of their folders
    keys = ("none-bank", "logit-online", "logit-views-1", "time-100s", "steps-of-100s")
    assert not any(key in runs.sub("", text) for text in read for key in keys)
    assert all("none, stored views" in text and "logit, teacher at every step" in text for text in read[:3])
    document = json.loads((folder / "standings.json").read_text())
    labels = {each["name"]: each["label"] for each in document["contenders"]}
    assert labels["none-bank"] == "none, stored views" and labels["feature"] == "feature"
    rows = document["rankings"][0]["rows"] + document["moves"] + document["costs"] + document["curves"]
    rows += document["runs"] + document["sections"][0]["blocks"][-2]["rows"]
    assert len(rows) > 100 and all(row["label"] == labels[row["contender"]] for row in rows)
    with open(folder / "standings.csv") as file:
        assert {row["contender"] for row in csv.DictReader(file)} == labels.keys()


@pytest.fixture
def doubtful(tmp_path: Path) -> Path:
    """By time a drift of 182 % of the baseline's step, by steps 3 steps."""
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT), seeds=(0, 1)))
    metrics = folder / "runs" / "time-100s-none-seed-0-repeated" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    slower = [{**line, "step_s": 1.41} if line["kind"] == "train" else line for line in lines]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in slower))
    for method in ("none", "logit"):
        for seed in (0, 1):
            shorten(folder, f"steps-of-100s-{method}-seed-{seed}", 3)
    return folder


def test_every_caution_is_in_every_rendering(doubtful: Path) -> None:
    cautions = Standings.read(doubtful).cautions
    assert [caution.partition(":")[0] for caution in cautions] == [
        "After 1 min 40 s of training, these runs show nothing reliable",
        "After 200 steps, those of the baseline in 1 min 40 s, these runs show nothing reliable",
        "In the runs of 1 min 40 s, a step of the baseline took 182 % longer at the end than at the beginning",
    ]
    for caution in cautions:
        assert in_all_renderings(doubtful, caution), caution
    (noise,) = noise_tables(Standings.read(doubtful))
    assert [row[:2] for row in noise.texts] == [["1 min 40 s", "0"]]


def test_short_runs_and_an_unsteady_machine_give_no_ranking(doubtful: Path) -> None:
    standings = Standings.read(doubtful)
    by_time, by_steps = standings.rankings
    assert by_time.doubt is not None and "182 % longer" in by_time.doubt
    assert by_steps.doubt is not None and "fewer than 100 steps, the shortest 3" in by_steps.doubt
    for ranking in (by_time, by_steps):
        table = ranking_table(ranking, give_styles(["logit"], "none"), "none")
        assert table.caution == ranking.doubt
        assert [row[:4] for row in table.texts] == [
            ["logit", "-", "~60", "~+10 (10 to 10)"],
            ["none", "-", "~50", "-"],
        ]
    (lead,) = conclude(standings)
    assert lead == (  # no winner
        "After 1 min 40 s of training, these runs show nothing reliable: a step of none took 182 % longer in one of its "
        "runs than in another, for the same work."
    )
    names = [figure.name for figure in make_report(doubtful, standings).figures]
    assert "ranking" not in names and "classes-1" not in names


def test_a_hundred_steady_steps_are_ranked(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT), seeds=(0,)))
    assert [ranking.doubt for ranking in Standings.read(folder).rankings] == [None, None]
    shorten(folder, "time-100s-logit-seed-0", 99)
    ranking = Standings.read(folder).rankings[0]
    assert ranking.doubt is None  # the baseline has enough; one row alone loses its decimals
    table = ranking_table(ranking, give_styles(["logit"], "none"), "none")
    assert [row[:3] for row in table.texts] == [["logit", "1", "~60"], ["none", "2", "50.00"]]
    shorten(folder, "time-100s-none-seed-0", 99)
    assert Standings.read(folder).rankings[0].doubt is not None


def test_no_interval_runs_below_0_or_above_100_percent(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT), seeds=(0, 1)))
    path = folder / "runs" / "time-100s-logit-seed-0" / "scores.json"
    result = json.loads(path.read_text())
    result["scores"]["miou"] = 0.01
    path.write_text(json.dumps(result))
    standings = Standings.read(folder)
    logit = next(row for row in standings.rankings[0].rows if row.contender == "logit")
    assert logit.interval == (0.0, 1.0)
    figures = {figure.name: figure for figure in make_report(folder, standings).figures}
    means = figures["miou-at-equal-time"]
    assert means.caption.endswith("Intervals are cut at 0 and 100 %.")
    assert isinstance(means.chart, DotChart) and means.chart.stretch == (0.0, 100.0)
    assert [row.text for row in means.chart.rows][1] == "30.55 (0.0 to 100.0)"


def test_the_answer_counts_as_people_do(tmp_path: Path) -> None:
    one = Standings.read(make_comparison(tmp_path / "one", make_contest((NONE, LOGIT), seeds=(0, 1))))
    assert conclude(one)[1] == "The one method compared with none is better."
    two = Standings.read(
        make_comparison(tmp_path / "two", make_contest((NONE, LOGIT, FEATURE), seeds=(0, 1)))
    )
    assert conclude(two)[1] == "Of 2 methods compared with none, 2 are better."


def test_gain_and_price_are_of_the_headlines_clock(standings: Standings, tmp_path: Path) -> None:
    titles = [figure.title for figure in make_report(tmp_path, standings).figures]
    assert "Gain and price, at equal time" in titles
    assert conclude(standings)[0].startswith("After 1 min 40 s of training, ")


def test_every_method_looks_the_same_in_every_figure(tmp_path: Path) -> None:
    """20 contenders, with colour, marker and dash of their own."""
    names = [f"m{n}" for n in range(19)]
    rows = [Contender(method=name) for name in names]
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(METHODS, name, METHODS["logit"])
        folder = make_comparison(tmp_path / "out", make_contest((NONE, *rows), seeds=(0,)))
        report = make_report(folder, Standings.read(folder))
    found: dict[str, set[Style]] = {}
    for figure in report.figures:
        chart = figure.chart
        if isinstance(chart, RankChart):
            pairs = list(chart.styles.items())
        elif isinstance(chart, LineChart | DotChart):
            pairs = [
                (each.name, each.style)
                for each in (chart.lines if isinstance(chart, LineChart) else chart.rows)
            ]
        else:
            continue
        for name, style in pairs:
            found.setdefault(name, set()).add(style)
    assert len(found) == 20 and all(len(styles) == 1 for styles in found.values())
    assert len(set().union(*found.values())) == 20


def test_times_that_agree_are_one_column(standings: Standings) -> None:
    """A share of 20 s of the building shows in runs of minutes and not in runs of days."""
    table = teacher_cost_tables(standings.rankings)[0]
    assert isinstance(table, Table) and table.header[2:] == [
        "training",
        "with the whole teacher",
        "with its share",
    ]
    days = [
        replace(row, training_s=360_000.0, with_teacher_s=360_600.0, with_shared_teacher_s=360_020.0)
        for row in standings.rankings[0].rows
    ]
    merged = teacher_cost_tables([replace(standings.rankings[0], rows=days)])[0]
    assert isinstance(merged, Table) and merged.header[2:] == ["training", "with the whole teacher"]
    assert "with its share" in merged.note


def test_another_teacher_at_the_side_is_told(tmp_path: Path) -> None:
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT, ONLINE), seeds=(0,)))
    path = folder / "runs" / "time-100s-logit-online-seed-0" / "inputs.json"
    inputs = json.loads(path.read_text())
    inputs["teacher"]["weights_sha256"] = "ab"
    path.write_text(json.dumps(inputs))
    assert any("has other weights than the store's" in caution for caution in Standings.read(folder).cautions)


def test_the_teachers_cost_is_shown_whole_and_shared(standings: Standings) -> None:
    assert standings.teacher_cost is not None
    assert (standings.teacher_cost.build_s, standings.teacher_cost.runs) == (600, 12)
    rows = {row.contender: row for row in standings.rankings[0].rows}
    assert rows["logit"].with_teacher_s == pytest.approx(100 + 600)
    assert rows["logit"].with_shared_teacher_s == pytest.approx(100 + 50)
    assert rows["none"].with_teacher_s == rows["none"].training_s == pytest.approx(100)


def test_a_run_with_few_views_bears_their_cost_alone(tmp_path: Path) -> None:
    few = replace(LOGIT, passes=1)
    folder = make_comparison(tmp_path / "out", make_contest((NONE, LOGIT, few), seeds=(0,)))
    standings = Standings.read(folder)
    assert standings.teacher_cost is not None and list(standings.teacher_cost.users) == [4, 2]
    rows = {row.contender: row for row in standings.rankings[0].rows}
    spent = rows["logit"].training_s or 0.0
    assert rows["logit"].with_teacher_s == pytest.approx(spent + 600)
    assert rows["logit"].with_shared_teacher_s == pytest.approx(spent + 300 / 4 + 300 / 2)
    spent = rows["logit-views-1"].training_s or 0.0
    assert rows["logit-views-1"].with_teacher_s == pytest.approx(spent + 300)
    assert rows["logit-views-1"].with_shared_teacher_s == pytest.approx(spent + 300 / 4)


def test_an_extended_comparison_stands_in_one(tmp_path: Path) -> None:
    contest = make_contest((NONE, LOGIT, FEATURE), seeds=(0,))
    more = make_ask((NONE, LOGIT), seeds=(0, 1, 2))
    longer = make_ask((LOGIT,), budgets_s=(400.0,))
    standings = Standings.read(
        make_comparison(tmp_path / "out", replace(contest, asks=(*contest.asks, more, longer)))
    )
    assert [(r.rung.name, len(r.rows)) for r in standings.rankings] == [
        *(("time-100s", 3), ("time-400s", 2), ("steps-of-100s", 3), ("steps-of-400s", 2)),
    ]
    assert standings.main.rung.name == "time-100s"  # at the length that all have, not the longest
    assert standings.counterpart is not None and standings.counterpart.rung.name == "steps-of-100s"
    assert [len(row.by_seed) for row in standings.main.rows] == [3, 1, 3]
    assert any(
        c.startswith("After 1 min 40 s and after 200 steps, some methods have more seeds")
        for c in standings.cautions
    )
    assert len(standings.to_dict()["commands"]) == 3
    ladder = Ladder.of(standings)
    assert ladder is not None and (ladder.clock, ladder.lengths) == ("time", [100.0, 400.0])
    assert list(ladder.points) == ["logit", "none"]
    text = markdown(make_report(tmp_path / "out", standings), tmp_path / "out")
    assert "| method | 1 min 40 s | 6 min 40 s | 200 steps | 800 steps |" in text
    assert "| logit | 60.10 +10.00 |" in text


def test_places_are_by_common_seeds(tmp_path: Path) -> None:
    """A contender without the seeds on which all are better, such as seed 2 in tests/comparisons.py, keeps its rank."""
    near = Contender(method="cwd")  # slightly better than `logit` on every seed
    contest = make_contest((NONE, LOGIT), seeds=(0, 1, 2))
    folder = make_comparison(
        tmp_path / "out", replace(contest, asks=(*contest.asks, make_ask((near,), seeds=(0,))))
    )
    for clock in ("time-100s", "steps-of-100s"):
        path = folder / "runs" / f"{clock}-cwd-seed-0" / "scores.json"
        result = json.loads(path.read_text())
        result["scores"]["miou"] = 0.6005  # logit: 0.6, 0.601, 0.602
        path.write_text(json.dumps(result))
    rows = Standings.read(folder).rankings[0].rows
    assert [row.contender for row in rows] == ["cwd", "logit", "none"]
    assert rows[0].miou is not None and rows[1].miou is not None and rows[0].miou < rows[1].miou


def test_rungs_of_one_budget_are_set_against_each_other(tmp_path: Path) -> None:
    contest = make_contest((NONE, LOGIT), budgets_s=(50.0, 100.0), seeds=(0,))
    rungs = tuple(rung for rung in contest.rungs if rung.name != "steps-of-50s")
    contest = replace(contest, asks=(replace(contest.asks[0], rungs=rungs),))
    standings = Standings.read(make_comparison(tmp_path / "out", contest))
    pairs = [(one.rung.name, other.rung.name) for one, other in pair_clocks(standings.rankings)]
    assert pairs == [("time-100s", "steps-of-100s")]


def test_views_have_a_table_of_their_own(tmp_path: Path) -> None:
    contest = make_contest((NONE, LOGIT, replace(LOGIT, passes=1), ONLINE), seeds=(0, 1))
    standings = Standings.read(make_comparison(tmp_path / "out", contest))
    views = Views.of(standings)
    assert views is not None and views.ranking.rung.clock == "steps"
    assert [at for at, _ in views.points["logit"]] == [1, 2] and list(views.online) == ["logit"]
    text = markdown(make_report(tmp_path / "out", standings), tmp_path / "out")
    assert "| method | 1 | 2 | teacher at every step |" in text


def test_a_runs_time_is_told_apart(standings: Standings) -> None:
    for account in standings.accounts:
        assert account.status == COMPLETE
        assert account.evaluation_s == EVALUATION_S and account.saving_s == SAVING_S
        assert account.startup_s == pytest.approx(STARTUP_S)
        assert account.wait_s == pytest.approx(0.1 * (account.training_s or 0))
        assert account.command is not None and " --steps " in account.command


def test_the_document_is_json_and_says_what_html_needs(standings: Standings) -> None:
    document = json.loads(json.dumps(standings.to_dict(), allow_nan=False))
    assert document["dataset"]["classes"] == ["road", "car", "sky"]
    assert document["environment"]["device"] == "cpu" and document["environment"]["differing"] == []
    assert document["contenders"][2] | {"name": "logit", "terms": {"logit": 1.0}} == document["contenders"][2]
    assert len(document["curves"]) == len(document["runs"]) == 31
    assert document["teacher"]["cost"]["build_s"] == 600
    assert document["rankings"][0]["rows"][0]["difference"]["separable"] is True


def test_failed_and_missing_runs_are_left_out_of_the_ranking(tmp_path: Path) -> None:
    contest = make_contest((NONE, LOGIT), seeds=(0, 1))
    error = "--method logit: the loss term 'logit' is nan at step 3"
    folder = make_comparison(tmp_path / "out", contest, failed={"time-100s-logit-seed-1": error})
    standings = Standings.read(folder)
    (failed,) = standings.failed
    assert (failed.status, failed.error, failed.miou) == (FAILED, error, None)
    logit = next(row for row in standings.rankings[0].rows if row.contender == "logit")
    assert logit.by_seed == pytest.approx({0: 0.6})
    assert logit.difference is not None
    assert (logit.difference.pairs, logit.difference.separable) == (1, None)


def test_a_comparison_that_has_not_begun_has_standings(tmp_path: Path) -> None:
    contest = make_contest((NONE, BANK, LOGIT, FEATURE, ONLINE), seeds=(0,))
    (tmp_path / "comparison.json").write_text(json.dumps(contest.to_dict()))
    standings = Standings.read(tmp_path)
    assert {account.status for account in standings.accounts} == {WAITING}
    assert [row.rank for row in standings.rankings[0].rows] == [None] * 5
    json.dumps(standings.to_dict(), allow_nan=False)


def test_a_folder_without_a_comparison_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no comparison in"):
        Standings.read(tmp_path)
    (tmp_path / "comparison.json").write_text('{"contenders": [{"colour": "red"}]}')
    with pytest.raises(UsageError, match=r"comparison.json does not describe a comparison"):
        Standings.read(tmp_path)
