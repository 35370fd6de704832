"""Rankings: the contenders of a comparison on each rung, by mean mIoU over seeds, and whose place depends on the clock."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.distill.account import Outcome
from kdcache.distill.contest import Contender, Contest, Rung, find_steps
from kdcache.distill.intervals import Difference, mean_interval, paired_difference
from kdcache.distill.teachercost import TeacherCost


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

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "by_seed": {str(seed): miou for seed, miou in self.by_seed.items()},
            "difference": self.difference.to_dict() if self.difference else None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """All contenders on a rung, the best first, those without a score last."""

    rung: Rung
    steps: int | None  # of a rung of steps, where they are known
    rows: Sequence[Row]

    def ranks(self) -> dict[str, int]:
        """By contender."""
        return {row.contender: row.rank for row in self.rows if row.rank is not None}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "rung": self.rung.name,
            "clock": self.rung.clock,
            "budget_s": self.rung.budget_s,
            "steps": self.steps,
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A contender whose place depends on the clock."""

    contender: str
    time_rung: str
    steps_rung: str
    by_time: int  # ranks
    by_steps: int


def rank_rung(
    contest: Contest, rung: Rung, outcomes: Sequence[Outcome], teacher_cost: TeacherCost | None
) -> Ranking:
    """All contenders of a rung by the mean mIoU of their complete runs."""
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


def find_moves(rankings: Sequence[Ranking]) -> Iterator[Move]:
    """Contenders with different places on the two clocks.

    Rungs of the two clocks are set against each other in their order, the shortest with the shortest.
    """
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
