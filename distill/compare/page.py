"""A comparison as one HTML page that holds all it shows: no script, no network, no file beside it.

OUT/report.html
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.cache.errors import KDCacheError
from kdcache.distill.compare.account import COMPLETE, RunAccount
from kdcache.distill.compare.intervals import CONFIDENCE
from kdcache.distill.compare.page_bars import class_figures, cost_figures
from kdcache.distill.compare.page_charts import (
    Looks,
    curve_figure,
    in_charts,
    ladder_figure,
    mean_figures,
    pair,
    rank_figure,
    views_figure,
    worth_figure,
)
from kdcache.distill.compare.page_samples import sample_section
from kdcache.distill.compare.page_tables import (
    account_table,
    class_table,
    fact_table,
    failure_table,
    length_table,
    noise_table,
    ranking_table,
    teacher_cost_table,
)
from kdcache.distill.compare.ranking import Ranking
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.verdict import answer
from kdcache.distill.report.markup import Markup, tag
from kdcache.distill.report.styles import give_looks
from kdcache.distill.report.stylesheet import style_sheet
from kdcache.distill.units import duration_text

PAGE = "report.html"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A browser that reads it fetches and runs nothing, whatever a page's data would have it do."""


def write_page(folder: Path, standings: Standings) -> Path:
    """Write the page of a comparison into its folder. Raises KDCacheError where it cannot be written."""
    path = folder / PAGE
    try:
        path.write_text(page(folder, standings), encoding="utf-8")
    except OSError as error:
        raise KDCacheError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR") from None
    return path


def page(folder: Path, standings: Standings) -> str:
    """The whole document. `folder` is the comparison's: its runs' sample predictions are read from there."""
    main, baseline = standings.main, standings.contest.baseline.name
    charted = in_charts(standings, main)
    ranked = [row.contender for ranking in (charted, main, *standings.rankings) for row in ranking.rows]
    looks = give_looks(list(dict.fromkeys(ranked)), baseline)
    document = standings.to_dict()
    title = f"Distillation methods on {document['dataset']['name']}"
    sections = [
        _head(title, standings, document),
        _section("Rankings", *_rankings(standings, looks)),
        _section("While training", *_curves(standings, looks)),
        _section(
            "Budgets and views",
            pair(
                ladder_figure(standings, looks),
                views_figure(standings, looks),
            ),
        ),
        _section("What a step costs", pair(*cost_figures(standings))),
        _section("Classes", pair(*class_figures(standings, charted)), class_table(standings, charted)),
        _section("Sample predictions", sample_section(folder, standings, charted)),
        _section("The teacher's cost", *_teacher_cost(standings)),
        _section("Noise of the machine", noise_table(standings)),
        _section("Runs", failure_table(standings), account_table(standings)),
        _section("To repeat it", *_repeat(standings, main, document)),
    ]
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("title", title),
            tag("style", Markup(style_sheet())),
        ),
        tag("body", tag("main", *sections)),
        lang="en",
    )


def _section(title: str, *parts: Markup) -> Markup | None:
    """None where no part has anything to show."""
    shown = [part for part in parts if part]
    return tag("section", tag("h2", title), *shown) if shown else None


def _head(title: str, standings: Standings, document: Mapping[str, Any]) -> Markup:
    dataset, place = document["dataset"], document["environment"]
    done = sum(outcome.status == COMPLETE for outcome in standings.outcomes)
    failed, asked = len(standings.failed), len(standings.outcomes)
    teacher = standings.contest.teacher
    score = f", mIoU {100 * teacher['miou']:.2f} %" if teacher.get("miou") is not None else ""
    facts = {
        "evaluated on": f"{dataset['eval_images'] or '?'} images of {dataset['name']} {dataset['eval_split'] or ''}",
        "student": _student(standings),
        "teacher": f"{teacher.get('name', 'unknown')}{score}",
        "lengths": _lengths(standings),
        "seeds": str(len(standings.contest.seeds)),
        "runs": f"{done} of {asked} complete" + (f", {failed} failed" if failed else ""),
        "hardware": _hardware(place, standings.contest.processes),
    }
    return tag(
        "header",
        tag("h1", title),
        tag("p", " ".join(answer(standings)), class_="answer"),
        tag(
            "p",
            f"{len(standings.contest.contenders)} ways to train the same student, from one store of teacher outputs, "
            f"each for the same time and for the same steps. mIoU is the mean over seeds, of the last checkpoints. "
            f"Differences are paired by seed; intervals are {100 * CONFIDENCE:.0f} % of Student's t, each for itself; a "
            "difference is not separable where its interval holds zero.",
            class_="about",
        ),
        tag(
            "dl",
            *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()),
            class_="facts",
        ),
    )


def _rankings(standings: Standings, looks: Looks) -> Iterator[Markup]:
    baseline, teacher_miou = standings.contest.baseline.name, standings.contest.teacher.get("miou")
    shown = _both_clocks(standings)
    charted = [in_charts(standings, ranking) for ranking in reversed(shown)]
    worth = worth_figure(standings, charted[0], looks)
    yield pair(rank_figure(charted[0], charted[1], looks), worth) if len(charted) > 1 else worth
    yield pair(*mean_figures(charted, looks, teacher_miou))
    for ranking in shown:
        yield ranking_table(ranking, looks, baseline)
    yield length_table(standings, baseline)


def _curves(standings: Standings, looks: Looks) -> Iterator[Markup]:
    shown = _both_clocks(standings)
    yield pair(*(curve_figure(standings, in_charts(standings, ranking), looks) for ranking in shown))


def _both_clocks(standings: Standings) -> list[Ranking]:
    """The main ranking and that on the other clock, the one by time first."""
    shown = [ranking for ranking in (standings.main, standings.counterpart) if ranking]
    return sorted(shown, key=lambda ranking: ranking.rung.order)


def _teacher_cost(standings: Standings) -> Iterator[Markup]:
    cost = standings.teacher_cost
    if cost is None:
        return
    yield tag(
        "p",
        f"Building the store that the runs used, views of every image: {cost.passes}, took {duration_text(cost.build_s)}, "
        f"once, at the pace on record. Runs from it: {cost.runs}; {duration_text(cost.shared_s)} each on average. A run that was "
        "confined to fewer views bears their cost alone.",
    )
    yield teacher_cost_table([in_charts(standings, ranking) for ranking in _both_clocks(standings)])


def _repeat(standings: Standings, main: Ranking, document: Mapping[str, Any]) -> Iterator[Markup]:
    place = document["environment"]
    packages = ", ".join(
        f"{name} {version}" for name, version in place.get("packages", {}).items() if version
    )
    yield tag("pre", tag("code", "\n".join(document["commands"])))
    yield fact_table(
        "What it stands on",
        [
            ("store", document["options"].get("store")),
            ("store key", document["store_key"]),
            ("manifests of its passes", _manifests(standings)),
            ("packages", packages),
            ("python", place.get("python")),
            ("platform", place.get("platform")),
            ("hardware", _hardware(place, standings.contest.processes)),
            ("differs between runs", ", ".join(place["differing"])),
        ],
    )
    seed = standings.contest.seeds[0]
    commands = [
        outcome.command
        for outcome in standings.outcomes
        if outcome.command and outcome.start.rung == main.rung and outcome.start.seed == seed
    ]
    if commands:
        yield tag("h3", f"The runs of seed {seed} at the longest budget; the others stand in standings.csv")
        yield tag("pre", tag("code", "\n".join(commands)))


def _lengths(standings: Standings) -> str:
    """As in "30 min, 1 h; and the baseline's steps"."""
    timed = [
        duration_text(rung.budget_s)
        for rung in standings.contest.rungs
        if rung.clock == "time" and rung.budget_s
    ]
    counted = [rung for rung in standings.contest.rungs if rung.clock == "steps"]
    named = [f"{rung.steps} steps" for rung in counted if rung.steps is not None]
    said = ", ".join([*timed, *named])
    return f"{said}; and the baseline's steps" if len(named) < len(counted) else said


def _records(standings: Standings) -> Sequence[RunAccount]:
    return [outcome for outcome in standings.outcomes if outcome.record]


def _student(standings: Standings) -> str:
    names = {o.record.config["student"] for o in _records(standings) if o.record}
    return ", ".join(sorted(names)) or "unknown"


def _manifests(standings: Standings) -> str:
    """Digests by pass, as the runs were pinned to them; a manifest names every object and the calibration."""
    pinned: dict[str, str] = {}
    for outcome in _records(standings):
        assert outcome.record is not None
        found = outcome.record.inputs.get("manifests", {})
        pinned |= {index: digest[:12] for index, digest in found.items() if digest}
    return ", ".join(f"{index}: {digest}" for index, digest in pinned.items())


def _hardware(place: Mapping[str, Any], processes: int) -> str:
    if not place.get("device"):
        return "unknown"
    cuda = f", CUDA {place['cuda']}" if place.get("cuda") else ""
    threads = f", threads: {place['threads']}" if place.get("threads") else ""
    return f"{processes} x {place['device']}{cuda}; {place.get('processors', '?')} processors{threads}"
