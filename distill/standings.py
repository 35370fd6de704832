"""Standings: what came of a comparison, as numbers alone. Read from its folder, also while it goes on.

    standings = Standings.read(Path("runs/comparison"))
    runfolder.write_json(Path("standings.json"), standings.to_dict())

A ranking is by the mean mIoU over seeds, of the last checkpoints. Differences are to the baseline, paired by seed.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdcache.cache.errors import NotFoundError
from kdcache.cache.urls import redact
from kdcache.distill import runfolder
from kdcache.distill.account import COMPLETE, FAILED, Outcome, read_attempts, read_outcome
from kdcache.distill.comparison import CLOSE_MIOU
from kdcache.distill.contest import COMPARISON, Contender, Contest, Rung, find_steps
from kdcache.distill.intervals import Difference, mean_interval, paired_difference
from kdcache.distill.stepcost import Cost, measure_costs

FORMAT_VERSION = 1

STEADY = 0.05
"""A machine whose steps drift by more than this is worth a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contender on a rung. Means are over the seeds that are complete."""

    rank: int | None  # 1 is best; None without a score
    contender: str
    miou: float | None
    interval: tuple[float, float] | None  # of the mean mIoU; None for fewer than two seeds
    by_seed: Mapping[int, float]
    difference: Difference | None  # of mIoU to the baseline; None for itself, and without a common seed
    pixel_accuracy: float | None
    class_iou: Mapping[str, float | None]
    steps: float | None
    training_s: float | None
    with_teacher_s: float | None  # and the whole cost of the store that it used
    with_shared_teacher_s: float | None  # and its share of that, by the runs that used it
    over_teacher: float | None  # mIoU as a fraction of the teacher's


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """All contenders on a rung, the best first, those without a score last."""

    rung: Rung
    steps: int | None  # of a rung of steps, where they are known
    rows: Sequence[Row]

    def ranks(self) -> dict[str, int]:
        return {row.contender: row.rank for row in self.rows if row.rank is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A contender whose place depends on the clock."""

    contender: str
    time_rung: str
    steps_rung: str
    by_time: int  # ranks
    by_steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """The baseline twice, with one seed: first among the others, then at the very end."""

    rung: str
    seed: int
    miou: tuple[float | None, float | None]
    steps: tuple[int, int]
    step_s: tuple[float, float]

    @property
    def step_drift(self) -> float:
        """Relative change of the time of a step from the first run to the last."""
        return self.step_s[1] / self.step_s[0] - 1 if self.step_s[0] else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCost:
    """What the stored targets cost once, as the builders recorded it, for the passes that the runs used."""

    build_s: float
    passes: int
    runs: int  # those that used the store's targets
    shared_s: float  # for each of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Standings:
    """What came of a comparison."""

    contest: Contest
    outcomes: Sequence[Outcome]
    rankings: Sequence[Ranking]
    moves: Sequence[Move]
    costs: Sequence[Cost]
    noise: Sequence[Noise]
    teacher_cost: TeacherCost | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises NotFoundError where no comparison is, UsageError where a file of it is damaged."""
        if not (folder / COMPARISON).is_file():
            raise NotFoundError(
                f"no comparison in {folder}: there is no {COMPARISON}", hint="kdcache compare --out DIR"
            )
        contest = Contest.from_dict(runfolder.read_json(folder / COMPARISON))
        attempts = read_attempts(folder)
        outcomes = [read_outcome(folder, start, attempts.get(start.name, [])) for start in contest.starts()]
        teacher_cost = _teacher_cost(contest, outcomes)
        rankings = [_rank(contest, rung, outcomes, teacher_cost) for rung in contest.rungs]
        return cls(
            contest=contest,
            outcomes=outcomes,
            rankings=rankings,
            moves=list(_moves(rankings)),
            costs=measure_costs(contest, outcomes),
            noise=list(_noise(contest, outcomes)),
            teacher_cost=teacher_cost,
        )

    @property
    def cautions(self) -> list[str]:
        """What keeps the numbers from meaning what they seem to, a sentence each."""
        found = [
            f"on {noise.rung} a step of the baseline took {100 * noise.step_drift:+.0f} % at the end: costs, and places "
            "by time, are no surer than that"
            for noise in self.noise
            if abs(noise.step_drift) > STEADY
        ]
        early = [o.start.name for o in self.outcomes if o.summary and o.summary.ended_by_clock]
        if early:
            found.append(
                f"the time of {len(early)} runs was up before the learning rate was at its end: {', '.join(early)}"
            )
        if differing := self._environment()["differing"]:
            found.append(f"runs differ in {', '.join(differing)}")
        teacher_miou = self.contest.teacher.get("miou")
        base = [
            row.miou
            for ranking in self.rankings
            for row in ranking.rows
            if row.contender == self.contest.baseline.name
        ]
        best = max((miou for miou in base if miou is not None), default=None)
        if teacher_miou is not None and best is not None and teacher_miou - best < CLOSE_MIOU:
            found.append(
                f"the teacher is less than {100 * CLOSE_MIOU:.0f} points above the baseline: this says little about "
                "distillation"
            )
        return found

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status == FAILED]

    def to_dict(self) -> dict[str, Any]:
        """JSON values. mIoU and IoU are fractions, times seconds."""
        contest = self.contest
        return {
            "format": FORMAT_VERSION,
            "baseline": contest.baseline.name,
            "contenders": [
                {"name": c.name, **asdict(c), "terms": self._terms(c)} for c in contest.contenders
            ],
            "clocks": contest.clocks,
            "rungs": [{"name": rung.name, **asdict(rung)} for rung in contest.rungs],
            "seeds": list(contest.seeds),
            "processes": contest.processes,
            "options": {**contest.run, "store": redact(str(contest.run.get("store", "")))},
            "store_key": contest.store_key,
            "command": contest.command(),
            "student": next((o.summary.student for o in self.outcomes if o.summary), None),
            "dataset": self._dataset(),
            "environment": self._environment(),
            "teacher": {**contest.teacher, "cost": asdict(self.teacher_cost) if self.teacher_cost else None},
            "rankings": [_ranking_dict(ranking) for ranking in self.rankings],
            "cautions": self.cautions,
            "moves": [asdict(move) for move in self.moves],
            "costs": [asdict(cost) for cost in self.costs],
            "noise": [{**asdict(noise), "step_drift": noise.step_drift} for noise in self.noise],
            "curves": [_curve_dict(outcome) for outcome in self.outcomes if outcome.record],
            "runs": [outcome.to_dict() for outcome in self.outcomes],
        }

    def _terms(self, contender: Contender) -> dict[str, float]:
        """Weights of the loss, as the runs had them."""
        weights = (
            outcome.record.environment.get("term_weights", {})
            for outcome in self.outcomes
            if outcome.record and outcome.start.contender == contender
        )
        return next(weights, {})

    def _dataset(self) -> dict[str, Any]:
        records = [outcome.record for outcome in self.outcomes if outcome.record]
        scores = next((record.scores for record in records if record.scores), None) or {}
        asked = next(iter(records), None)
        pinned = asked.inputs.get("dataset", {}) if asked else {}
        return {
            "name": pinned.get("name") or self.contest.run.get("dataset"),
            "split": pinned.get("split"),
            "eval_split": asked.config.get("eval_split") if asked else None,
            "eval_images": scores.get("images"),
            "classes": list(scores.get("iou", {})),
        }

    def _environment(self) -> dict[str, Any]:
        """Of the first run, and under `differing` what other runs have otherwise."""
        found = [outcome.record.environment for outcome in self.outcomes if outcome.record]
        places = [{k: v for k, v in place.items() if k not in _OF_ONE_RUN} for place in found]
        if not places:
            return {"differing": []}
        differing = [
            name for name in places[0] if any(place.get(name) != places[0][name] for place in places)
        ]
        return {**places[0], "differing": differing}


_OF_ONE_RUN = frozenset({"term_weights", "in_flight_entries", "in_flight_entry_bytes", "in_flight_bytes"})


def _rank(
    contest: Contest, rung: Rung, outcomes: Sequence[Outcome], teacher_cost: TeacherCost | None
) -> Ranking:
    done = [o for o in outcomes if o.start.rung == rung and not o.start.again and o.miou is not None]
    by_contender = {c: [o for o in done if o.start.contender == c] for c in contest.contenders}
    base = _by_seed(by_contender[contest.baseline])
    rows = [_row(contest, c, of_it, base, teacher_cost) for c, of_it in by_contender.items()]
    scored = sorted((row for row in rows if row.miou is not None), key=lambda row: -(row.miou or 0))
    ranked = [replace(row, rank=rank) for rank, row in enumerate(scored, start=1)]
    steps = {o.start.name: o.summary.steps for o in outcomes if o.miou is not None and o.summary}
    return Ranking(
        rung=rung,
        steps=find_steps(contest, rung, steps) if rung.clock == "steps" else None,
        rows=[*ranked, *(row for row in rows if row.miou is None)],
    )


def _row(
    contest: Contest,
    contender: Contender,
    done: Sequence[Outcome],
    base: Mapping[int, float],
    teacher_cost: TeacherCost | None,
) -> Row:
    by_seed = _by_seed(done)
    common = sorted(by_seed.keys() & base.keys())
    compared = common and contender != contest.baseline
    miou = statistics.fmean(by_seed.values()) if by_seed else None
    summaries = [outcome.summary for outcome in done if outcome.summary]
    training_s = _mean(outcome.training_s for outcome in done)
    stored = teacher_cost if contender.source == "cache" else None
    teacher_miou = contest.teacher.get("miou")
    return Row(
        rank=None,
        contender=contender.name,
        miou=miou,
        interval=mean_interval(list(by_seed.values())),
        by_seed=by_seed,
        difference=paired_difference([by_seed[s] for s in common], [base[s] for s in common])
        if compared
        else None,
        pixel_accuracy=_mean(summary.pixel_accuracy for summary in summaries),
        class_iou=_mean_class_iou(done),
        steps=_mean(summary.steps for summary in summaries),
        training_s=training_s,
        with_teacher_s=None if training_s is None else training_s + (stored.build_s if stored else 0.0),
        with_shared_teacher_s=None
        if training_s is None
        else training_s + (stored.shared_s if stored else 0.0),
        over_teacher=miou / teacher_miou if miou is not None and teacher_miou else None,
    )


def _by_seed(outcomes: Iterable[Outcome]) -> dict[int, float]:
    return {outcome.start.seed: outcome.miou for outcome in outcomes if outcome.miou is not None}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_class_iou(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    scores = [
        outcome.record.scores["iou"] for outcome in outcomes if outcome.record and outcome.record.scores
    ]
    names = dict.fromkeys(name for iou in scores for name in iou)
    return {name: _mean(iou.get(name) for iou in scores) for name in names}


def _moves(rankings: Sequence[Ranking]) -> Iterable[Move]:
    """Rungs of the two clocks are set against each other in their order, the shortest with the shortest."""
    of_clock = {
        clock: [ranking for ranking in rankings if ranking.rung.clock == clock] for clock in ("time", "steps")
    }
    for timed, counted in zip(of_clock["time"], of_clock["steps"], strict=False):
        by_time, by_steps = timed.ranks(), counted.ranks()
        common = by_time.keys() & by_steps.keys()
        # Ranks among those that have both: a run that failed on one clock moves nobody.
        time_order, steps_order = (sorted(common, key=ranks.__getitem__) for ranks in (by_time, by_steps))
        for place, name in enumerate(time_order, start=1):
            other = steps_order.index(name) + 1
            if other != place:
                yield Move(
                    contender=name,
                    time_rung=timed.rung.name,
                    steps_rung=counted.rung.name,
                    by_time=place,
                    by_steps=other,
                )


def _noise(contest: Contest, outcomes: Sequence[Outcome]) -> Iterable[Noise]:
    done = {o.start.name: o for o in outcomes if o.status == COMPLETE}
    for outcome in done.values():
        if not outcome.start.again:
            continue
        first = done.get(replace(outcome.start, again=False).name)
        if first and first.summary and outcome.summary:
            one, other = first.summary, outcome.summary
            yield Noise(
                rung=outcome.start.rung.name,
                seed=outcome.start.seed,
                miou=(one.miou, other.miou),
                steps=(one.steps, other.steps),
                step_s=(one.step_s, other.step_s),
            )


def _teacher_cost(contest: Contest, outcomes: Sequence[Outcome]) -> TeacherCost | None:
    by_pass = contest.teacher.get("build_s")
    used = [
        o.start.contender for o in outcomes if o.start.contender.source == "cache" and o.status == COMPLETE
    ]
    if not by_pass or not used:
        return None
    passes = max(contender.passes or len(by_pass) for contender in used)
    build_s = sum(by_pass[:passes])
    return TeacherCost(build_s=build_s, passes=passes, runs=len(used), shared_s=build_s / len(used))


def _ranking_dict(ranking: Ranking) -> dict[str, Any]:
    rows = [
        {
            **{name: getattr(row, name) for name in Row.__slots__},
            "by_seed": {str(seed): miou for seed, miou in row.by_seed.items()},
            "difference": row.difference.to_dict() if row.difference else None,
        }
        for row in ranking.rows
    ]
    rung = ranking.rung
    return {
        "rung": rung.name,
        "clock": rung.clock,
        "budget_s": rung.budget_s,
        "steps": ranking.steps,
        "rows": rows,
    }


def _curve_dict(outcome: Outcome) -> dict[str, Any]:
    assert outcome.record is not None
    curve = outcome.record.curve()
    return {
        "run": outcome.start.name,
        "contender": outcome.start.contender.name,
        "rung": outcome.start.rung.name,
        "clock": outcome.start.rung.clock,
        "seed": outcome.start.seed,
        "again": outcome.start.again,
        "steps": list(curve.steps),
        "seconds": list(curve.seconds),
        "miou": list(curve.miou),
    }
