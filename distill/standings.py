"""Standings: what came of a comparison, as numbers alone. Read from its folder, also while it goes on.

    standings = Standings.read(Path("runs/comparison"))
    runfolder.write_json(Path("standings.json"), standings.to_dict())

A ranking is by the mean mIoU over seeds, of the last checkpoints. Differences are to the baseline, paired by seed.
The cost of a step is a median over the steps between lines of metrics, over all runs on the clock named `time` where
there is one. Shares of student, loss and teacher follow from differences between contenders: see `Cost`.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kdcache.cache.errors import NotFoundError
from kdcache.distill import runfolder
from kdcache.distill.clock import BACKWARD, FORWARD, OPTIMISER, PARTS
from kdcache.distill.contest import (
    ATTEMPTS,
    COMPARISON,
    RUNS,
    Contender,
    Contest,
    Rung,
    Start,
    find_steps,
)
from kdcache.distill.intervals import Difference, paired_difference
from kdcache.distill.runrecord import RunRecord, RunSummary

FORMAT_VERSION = 1
COMPLETE, FAILED, UNFINISHED, WAITING = "complete", "failed", "unfinished", "waiting"
COMPUTE = (PARTS[FORWARD], PARTS[BACKWARD], PARTS[OPTIMISER])
"""Parts of a step that the device computes in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One run. Seconds are those of all its processes one after another; None where there is no run yet."""

    start: Start
    folder: str  # from the comparison's
    status: str  # COMPLETE, FAILED, UNFINISHED or WAITING
    error: str | None  # one line, of a failed run
    command: str | None  # repeats it
    training_s: float | None  # the account
    wait_s: float | None  # of it, waiting for data
    evaluation_s: float | None  # outside of the account, as are the next three
    saving_s: float | None
    startup_s: float | None  # and the end: processes, imports, opening, the report
    wall_s: float | None  # all of it
    summary: RunSummary | None
    record: RunRecord | None

    @property
    def miou(self) -> float | None:
        return self.summary.miou if self.summary and self.status == COMPLETE else None

    def to_dict(self) -> dict[str, Any]:
        times = ("training_s", "wait_s", "evaluation_s", "saving_s", "startup_s", "wall_s")
        summary = self.summary
        return {
            "name": self.start.name,
            "folder": self.folder,
            "contender": self.start.contender.name,
            "rung": self.start.rung.name,
            "seed": self.start.seed,
            "again": self.start.again,
            "status": self.status,
            "error": self.error,
            "steps": summary.steps if summary else None,
            "planned_steps": summary.planned_steps if summary else None,
            "step_s": summary.step_s if summary else None,
            "miou": self.miou,
            "pixel_accuracy": summary.pixel_accuracy if summary else None,
            **{name: getattr(self, name) for name in times},
            "command": self.command,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contender on a rung. Means are over the seeds that are complete."""

    rank: int | None  # 1 is best; None without a score
    contender: str
    miou: float | None
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
class Cost:
    """A step of a contender, in seconds.

    `student_s` is the computation of a baseline's step, `loss_s` what a method from the cache computes beyond that, and
    `teacher_s` what the method computes beyond its cached self when its teacher runs along; None where the comparison
    has no such contender.
    """

    contender: str
    step_s: float
    over_baseline: float | None  # a ratio; None where the baseline was not timed
    parts: Mapping[str, float]  # by clock.PARTS' words
    student_s: float | None
    loss_s: float | None
    teacher_s: float | None


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
        outcomes = [_read_outcome(folder, start, attempts.get(start.name, [])) for start in contest.starts()]
        teacher_cost = _teacher_cost(contest, outcomes)
        rankings = [_rank(contest, rung, outcomes, teacher_cost) for rung in contest.rungs]
        return cls(
            contest=contest,
            outcomes=outcomes,
            rankings=rankings,
            moves=list(_moves(rankings)),
            costs=_costs(contest, outcomes),
            noise=list(_noise(contest, outcomes)),
            teacher_cost=teacher_cost,
        )

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
            "options": dict(contest.run),
            "dataset": self._dataset(),
            "environment": self._environment(),
            "teacher": {**contest.teacher, "cost": asdict(self.teacher_cost) if self.teacher_cost else None},
            "rankings": [_ranking_dict(ranking) for ranking in self.rankings],
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


def read_attempts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of attempts.jsonl by run; the last one of a killed comparison may be half, and is left out."""
    path = folder / ATTEMPTS
    attempts: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            attempt = json.loads(line)
        except ValueError:
            continue
        attempts.setdefault(attempt["run"], []).append(attempt)
    return attempts


def _read_outcome(folder: Path, start: Start, attempts: Sequence[Mapping[str, Any]]) -> Outcome:
    place = Path(RUNS, start.name)
    record = RunRecord.read(folder / place) if (folder / place / runfolder.CONFIG).is_file() else None
    summary = record.summary() if record else None
    error = attempts[-1]["error"] if attempts else None
    done = summary is not None and summary.complete
    status = COMPLETE if done else FAILED if error else UNFINISHED if record else WAITING
    wall_s = sum(attempt["wall_s"] for attempt in attempts) if attempts else None
    spent = {
        "training_s": summary.training_s if summary else None,
        "evaluation_s": record.seconds_of("eval") if record else None,
        "saving_s": record.seconds_of("save") if record else None,
    }
    known_s = sum(seconds for seconds in spent.values() if seconds is not None)
    return Outcome(
        start=start,
        folder=place.as_posix(),
        status=status,
        error=None if done else error,
        command=record.repeat_command() if record else None,
        **spent,
        wait_s=summary.wait_share * summary.training_s if summary else None,
        startup_s=None if wall_s is None or record is None else max(0.0, wall_s - known_s),
        wall_s=wall_s,
        summary=summary,
        record=record,
    )


def _rank(
    contest: Contest, rung: Rung, outcomes: Sequence[Outcome], teacher_cost: TeacherCost | None
) -> Ranking:
    done = [o for o in outcomes if o.start.rung == rung and not o.start.again and o.miou is not None]
    by_contender = {c: [o for o in done if o.start.contender == c] for c in contest.contenders}
    base = _by_seed(by_contender[contest.baseline])
    rows = [_row(contest, c, of_it, base, teacher_cost) for c, of_it in by_contender.items()]
    scored = sorted((row for row in rows if row.miou is not None), key=lambda row: -(row.miou or 0))
    ranked = [_with_rank(row, rank) for rank, row in enumerate(scored, start=1)]
    steps = {o.start.name: o.summary.steps for o in outcomes if o.miou is not None and o.summary}
    return Ranking(
        rung=rung,
        steps=find_steps(contest, rung, steps) if rung.clock == "steps" else None,
        rows=[*ranked, *(row for row in rows if row.miou is None)],
    )


def _with_rank(row: Row, rank: int) -> Row:
    return Row(**{**{name: getattr(row, name) for name in Row.__slots__}, "rank": rank})


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
    training_s = _mean(outcome.training_s for outcome in done)
    stored = teacher_cost if contender.source == "cache" else None
    teacher_miou = contest.teacher.get("miou")
    return Row(
        rank=None,
        contender=contender.name,
        miou=miou,
        by_seed=by_seed,
        difference=paired_difference([by_seed[s] for s in common], [base[s] for s in common])
        if compared
        else None,
        pixel_accuracy=_mean(outcome.summary and outcome.summary.pixel_accuracy for outcome in done),
        class_iou=_mean_class_iou(done),
        steps=_mean(outcome.summary and outcome.summary.steps for outcome in done),
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


def _costs(contest: Contest, outcomes: Sequence[Outcome]) -> list[Cost]:
    measured: dict[Contender, tuple[float, dict[str, float]]] = {}
    for contender in contest.contenders:
        of_it = [o for o in outcomes if o.start.contender == contender and o.record and o.status == COMPLETE]
        timed = [o for o in of_it if o.start.rung.clock == contest.clocks[0] and not o.start.again]
        if timed:
            step_s = statistics.median(o.summary.step_s for o in timed if o.summary)
            profiles = [profile for o in timed if o.record and (profile := o.record.profile())]
            measured[contender] = (step_s, _mean_parts(profiles))
    base = measured.get(contest.baseline)
    return [
        Cost(
            contender=contender.name,
            step_s=step_s,
            over_baseline=step_s / base[0] if base and base[0] else None,
            parts=parts,
            student_s=_compute_s(base[1]) if base else None,
            loss_s=_loss_s(contender, measured, base and base[1]),
            teacher_s=_teacher_s(contender, measured),
        )
        for contender, (step_s, parts) in measured.items()
    ]


def _mean_parts(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        words: statistics.fmean(p[words] for p in profiles) for words in (PARTS.values() if profiles else ())
    }


def _compute_s(parts: Mapping[str, float]) -> float | None:
    return sum(parts[words] for words in COMPUTE) if parts else None


def _loss_s(
    contender: Contender,
    measured: Mapping[Contender, tuple[float, Mapping[str, float]]],
    base: Mapping[str, float] | None,
) -> float | None:
    """Of a method from the cache; that of an online contender is its cached self's."""
    if contender.source == "none" or not base:
        return None
    own, student = _cached_s(contender, measured), _compute_s(base)
    return None if own is None or student is None else own - student


def _teacher_s(
    contender: Contender, measured: Mapping[Contender, tuple[float, Mapping[str, float]]]
) -> float | None:
    if contender.source != "online":
        return None
    own, with_teacher = _cached_s(contender, measured), _compute_s(measured[contender][1])
    return None if own is None or with_teacher is None else with_teacher - own


def _cached_s(
    contender: Contender, measured: Mapping[Contender, tuple[float, Mapping[str, float]]]
) -> float | None:
    """What the method computes in a step from the cache: the contender itself, or its first one that does."""
    if contender.source == "cache":
        return _compute_s(measured[contender][1])
    cached = (
        parts for c, (_, parts) in measured.items() if c.method == contender.method and c.source == "cache"
    )
    return _compute_s(next(cached, {}))


def _noise(contest: Contest, outcomes: Sequence[Outcome]) -> Iterable[Noise]:
    done = {o.start.name: o for o in outcomes if o.status == COMPLETE}
    for outcome in done.values():
        if not outcome.start.again:
            continue
        first = done.get(outcome.start.name.removesuffix("-again"))
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
