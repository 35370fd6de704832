"""The report of a comparison: its standings as titles, tables and figures, and the files that come of it.

OUT/report.html  OUT/report.md  OUT/standings.json  OUT/standings.csv  OUT/figures/
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdcache.distill.compare.account import COMPLETE
from kdcache.distill.compare.breakdown_figures import class_figures, cost_figures
from kdcache.distill.compare.figures import (
    curve_figures,
    in_charts,
    length_figures,
    mean_figures,
    rank_figures,
    teacher_limits,
    view_figures,
    worth_figures,
)
from kdcache.distill.compare.intervals import CONFIDENCE
from kdcache.distill.compare.ranking import Ranking
from kdcache.distill.compare.standings import Standings
from kdcache.distill.compare.tables import (
    account_table,
    class_tables,
    failure_tables,
    length_tables,
    noise_tables,
    ranking_table,
    run_sheet,
    teacher_cost_tables,
    view_tables,
)
from kdcache.distill.compare.verdict import conclude
from kdcache.distill.report.model import Block, Code, Facts, Gallery, Paragraph, Report, Section, percent
from kdcache.distill.report.sample_files import SampleFiles
from kdcache.distill.report.styles import give_styles
from kdcache.distill.units import duration_text

MOST_IMAGES = 3
TEACHER = "teacher"  # a folder of the comparison that may contain the teacher's samples
STANDINGS = "standings"


def write_standings(folder: Path) -> Standings:
    """Write what came of the comparison in `folder` so far beside it.

    Raises:
        NotFoundError: the folder contains nothing of a comparison.
        KDCacheError: the folder does not take files.
    """
    from kdcache.distill.report.write import write_files  # takes matplotlib along

    standings = Standings.read(folder)
    write_files(make_report(folder, standings), folder, data_name=STANDINGS)
    return standings


def make_report(folder: Path, standings: Standings) -> Report:
    """All that there is to say. `folder` is the comparison's: samples of its runs are read from there."""
    main = standings.main
    baseline = standings.contest.labels[standings.contest.baseline.name]
    document, shown = standings.to_dict(), _both_clocks(standings)
    charted = [in_charts(standings, ranking) for ranking in shown]
    in_main = in_charts(standings, main)
    ranked = [row.label for ranking in (in_main, main, *standings.rankings) for row in ranking.rows]
    styles = give_styles(list(dict.fromkeys(ranked)), baseline)
    tables = [ranking_table(ranking, styles, baseline) for ranking in shown]
    return Report(
        title=f"Distillation methods on {document['dataset']['name']}",
        lead=conclude(standings),
        about=_about(standings),
        cautions=standings.cautions,
        facts=Facts(_head_facts(standings, document)),
        sections=[
            Section(
                "Rankings",
                [
                    *(rank_figures(charted[-1], charted[0], styles) if len(charted) > 1 else []),
                    *worth_figures(standings, in_main, styles),
                    *mean_figures(charted[::-1], styles, teacher_limits(standings)),
                    *tables,
                    *length_tables(standings, shown, baseline),
                ],
                brief=True,
            ),
            Section(
                "While training",
                [figure for ranking in charted for figure in curve_figures(standings, ranking, styles)],
            ),
            Section(
                "Budgets and views",
                [
                    *length_figures(standings, styles),
                    *view_figures(standings, styles),
                    *view_tables(standings, baseline),
                ],
            ),
            Section("What a step costs", cost_figures(standings)),
            Section("Classes", [*class_figures(standings, in_main), *class_tables(standings, in_main)]),
            Section("Sample predictions", _samples(folder, standings, in_main)),
            Section("The teacher's cost", _teacher_cost(standings, charted)),
            Section("Noise of the machine", noise_tables(standings)),
            Section("Runs", [*failure_tables(standings), account_table(standings)]),
            Section("To repeat it", _repeat(standings, document)),
        ],
        data=document,
        sheet=run_sheet(standings),
    )


def _both_clocks(standings: Standings) -> list[Ranking]:
    """The main ranking and that on the other clock, the one by time first."""
    shown = [ranking for ranking in (standings.main, standings.counterpart) if ranking]
    return sorted(shown, key=lambda ranking: ranking.rung.order)


def _about(standings: Standings) -> str:
    contest = standings.contest
    ways = len(contest.contenders)
    clocks = " and for the ".join(
        {"time": "same time", "steps": "same steps"}[clock] for clock in contest.clocks
    )
    return (
        f"{ways} way{'' if ways == 1 else 's'} to train the same student, from one store of teacher outputs, each for the "
        f"{clocks}. mIoU is the mean over seeds, of the last checkpoints. Differences are paired by seed; intervals are "
        f"{100 * CONFIDENCE:.0f} % of Student's t, each for itself. If the interval of a difference contains zero, the "
        "difference could be chance."
    )


def _head_facts(standings: Standings, document: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    dataset, teacher = document["dataset"], standings.contest.teacher
    done = sum(account.status == COMPLETE for account in standings.accounts)
    failed, asked = len(standings.failed), len(standings.accounts)
    score = f", mIoU {percent(teacher['miou'])} %" if teacher.get("miou") is not None else ""
    return [
        (
            "evaluated on",
            f"{dataset['eval_images'] or '?'} images of {dataset['name']} {dataset['eval_split'] or ''}".strip(),
        ),
        ("student", _students(standings)),
        ("teacher", f"{teacher.get('name', 'unknown')}{score}"),
        ("lengths", _lengths(standings)),
        ("seeds", ", ".join(map(str, standings.contest.seeds))),
        ("runs", f"{done} of {asked} complete" + (f", {failed} failed" if failed else "")),
        ("hardware", _hardware(document["environment"], standings.contest.processes)),
    ]


def _samples(folder: Path, standings: Standings, ranking: Ranking) -> list[Block]:
    """An image, its label, and what teacher and students predict; of the first seed's runs, in the order of a ranking."""
    seed = standings.contest.seeds[0]
    folders = {
        a.start.contender.name: folder / a.folder
        for a in standings.accounts
        if a.status == COMPLETE
        and a.start.rung == ranking.rung
        and a.start.seed == seed
        and not a.start.again
    }
    places = {TEACHER: folder / TEACHER}
    places |= {row.label: folders[row.contender] for row in ranking.rows if row.contender in folders}
    found = {name: files for name, place in places.items() if (files := SampleFiles.read(place))}
    if not found:
        return []
    first = next((files for name, files in found.items() if name != TEACHER), next(iter(found.values())))
    rows = []
    for index, image in enumerate(first.images[:MOST_IMAGES]):
        pictures = [first.picture(index, "image"), first.picture(index, "label")]
        pictures += [
            files.picture(index, "prediction", name)
            for name, files in found.items()
            if index < len(files.images) and files.images[index] == image
        ]
        rows.append((image, [picture for picture in pictures if picture]))
    legend = dict(entry for files in found.values() for entry in files.legend)
    return [Gallery(rows=rows, legend=list(legend.items()))]


def _teacher_cost(standings: Standings, charted: Sequence[Ranking]) -> list[Block]:
    cost = standings.teacher_cost
    if cost is None:
        return []
    about = (
        f"Building the store that the runs used, views of every image: {cost.passes}, took {duration_text(cost.build_s)}, "
        f"once, at the recorded pace. Runs from it: {cost.runs}; {duration_text(cost.shared_s)} each on average. A run that "
        "was confined to fewer views pays for those alone."
    )
    return [Paragraph(about), *teacher_cost_tables(charted)]


def _repeat(standings: Standings, document: Mapping[str, Any]) -> list[Block]:
    place, main = document["environment"], standings.main
    packages = place.get("packages", {}).items()
    blocks: list[Block] = [
        Code(document["commands"]),
        Facts(
            title="What it was made with",
            facts=[
                ("store", document["options"].get("store")),
                ("store key", document["store_key"]),
                ("manifests of its passes", _manifests(standings)),
                ("packages", ", ".join(f"{name} {version}" for name, version in packages if version)),
                ("python", place.get("python")),
                ("platform", place.get("platform")),
                ("hardware", _hardware(place, standings.contest.processes)),
                ("differs between runs", ", ".join(place["differing"])),
            ],
        ),
    ]
    seed = standings.contest.seeds[0]
    commands = [
        account.command
        for account in standings.accounts
        if account.command and account.start.rung == main.rung and account.start.seed == seed
    ]
    title = f"The runs of seed {seed} after {main.title}; standings.csv has the others"
    return [*blocks, Code(commands, title=title)] if commands else blocks


def _lengths(standings: Standings) -> str:
    """As in "30 min, 1 h; and the baseline's steps"."""
    rungs = standings.contest.rungs
    timed = [duration_text(rung.budget_s) for rung in rungs if rung.clock == "time" and rung.budget_s]
    counted = [rung for rung in rungs if rung.clock == "steps"]
    named = [f"{rung.steps} steps" for rung in counted if rung.steps is not None]
    said = ", ".join([*timed, *named])
    return f"{said}; and the baseline's steps" if len(named) < len(counted) else said


def _students(standings: Standings) -> str:
    names = {account.record.config["student"] for account in standings.accounts if account.record}
    return ", ".join(sorted(names)) or "unknown"


def _manifests(standings: Standings) -> str:
    """Digests by pass, as the runs were pinned to them; a manifest names every object and the calibration."""
    pinned: dict[str, str] = {}
    for account in standings.accounts:
        found = account.record.inputs.get("manifests", {}) if account.record else {}
        pinned |= {index: digest[:12] for index, digest in found.items() if digest}
    return ", ".join(f"{index}: {digest}" for index, digest in pinned.items())


def _hardware(place: Mapping[str, Any], processes: int) -> str:
    if not place.get("device"):
        return "unknown"
    cuda = f", CUDA {place['cuda']}" if place.get("cuda") else ""
    threads = f", threads: {place['threads']}" if place.get("threads") else ""
    return f"{processes} x {place['device']}{cuda}; {place.get('processors', '?')} processors{threads}"
