"""Rankings: the contenders on one length, their means over seeds, and what changes place between the clocks.

A ranking is by the mean mIoU of the last checkpoints. Where some contenders have more seeds than others it is by the mean
difference to the baseline, paired by seed: a seed that is easy for all would lift whoever has it.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.distill.compare.account import RunAccount
from kdcache.distill.compare.contest import Contender, Contest, Rung, find_steps
from kdcache.distill.compare.intervals import Difference, mean_interval, mean_of_known, paired_difference
from kdcache.distill.compare.teacher_cost import TeacherCost
from kdcache.distill.report.charts import clipped
from kdcache.distill.report.record import FEWEST_STEPS
from kdcache.distill.units import duration_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A contender on a rung. Means are over the seeds that are complete."""

    rank: int | None  # 1 is best; None without a score
    contender: str  # its name
    label: str  # what people read
    miou: float | None
    interval: tuple[float, float] | None  # of the mean mIoU, within 0 to 1; None for fewer than two seeds
    by_seed: Mapping[int, float]
    difference: Difference | None  # of mIoU to the baseline; None for itself, and without a common seed
    pixel_accuracy: float | None
    class_iou: Mapping[str, float | None]
    steps: float | None
    training_s: float | None
    with_teacher_s: float | None  # and the whole cost of the views that it used
    with_shared_teacher_s: float | None  # and its share of that, by the runs that used it
    over_teacher: float | None  # mIoU as a fraction of the teacher's

    @property
    def is_short(self) -> bool:
        """Too few steps for decimals to mean anything."""
        return self.steps is not None and self.steps < FEWEST_STEPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """The contenders that were asked on a rung, the best first, those without a score last."""

    rung: Rung
    steps: int | None  # of a rung of steps, where they are known
    rows: Sequence[Row]
    doubt: str | None = None  # why it shows nothing reliable, see cautions.py

    @property
    def title(self) -> str:
        """As in "30 min of training" or "2000 steps, those of the baseline in 30 min"."""
        if self.rung.clock == "time":
            return f"{duration_text(self.rung.budget_s or 0.0)} of training"
        count = "an unknown number of" if self.steps is None else self.steps
        budget_s = self.rung.budget_s
        return f"{count} steps" + (
            "" if budget_s is None else f", those of the baseline in {duration_text(budget_s)}"
        )

    @property
    def short_title(self) -> str:
        if self.rung.clock == "time":
            return duration_text(self.rung.budget_s or 0.0)
        return f"{self.steps or '?'} steps"

    def is_coarse(self, row: Row) -> bool:
        """Whether the decimals of a row would only show noise."""
        return self.doubt is not None or row.is_short

    def ranks(self) -> dict[str, int]:
        return {row.contender: row.rank for row in self.rows if row.rank is not None}

    @property
    def seeds_differ(self) -> bool:
        """Some contenders have seeds that others lack."""
        return len({tuple(sorted(row.by_seed)) for row in self.rows if row.by_seed}) > 1

    def to_dict(self) -> dict[str, Any]:
        rows = [
            {
                **{name: getattr(row, name) for name in Row.__slots__},
                "by_seed": {str(seed): miou for seed, miou in row.by_seed.items()},
                "difference": row.difference.to_dict() if row.difference else None,
            }
            for row in self.rows
        ]
        rung = self.rung
        return {
            "rung": rung.name,
            "clock": rung.clock,
            "budget_s": rung.budget_s,
            "steps": self.steps,
            "doubt": self.doubt,
            "rows": rows,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A contender whose place depends on the clock."""

    contender: str
    time_rung: str
    steps_rung: str
    by_time: int  # ranks
    by_steps: int


def rank(
    contest: Contest, rung: Rung, accounts: Sequence[RunAccount], teacher_cost: TeacherCost | None
) -> Ranking:
    """The ranking on a rung, by what is complete of `accounts`."""
    asked = [a for a in accounts if a.start.rung == rung and not a.start.again]
    by_contender = {
        contender: [a for a in asked if a.start.contender == contender and a.miou is not None]
        for contender in contest.contenders
        if any(a.start.contender == contender for a in asked)
    }
    base = _by_seed(by_contender[contest.baseline])
    rows = [_row(contest, c, of_it, base, teacher_cost) for c, of_it in by_contender.items()]
    ranked = [replace(row, rank=rank) for rank, row in enumerate(_in_order(contest, rows), start=1)]
    steps = {a.start.name: a.summary.steps for a in accounts if a.miou is not None and a.summary}
    return Ranking(
        rung=rung,
        steps=find_steps(contest, rung, steps) if rung.clock == "steps" else None,
        rows=[*ranked, *(row for row in rows if row.miou is None)],
    )


def _in_order(contest: Contest, rows: Sequence[Row]) -> list[Row]:
    """Those with a score, the best first."""
    scored = [row for row in rows if row.miou is not None]
    paired = {row.contender: row.difference.mean for row in scored if row.difference}
    paired[contest.baseline.name] = 0.0
    seeds = {tuple(sorted(row.by_seed)) for row in scored}
    if len(seeds) > 1 and all(row.contender in paired for row in scored):
        return sorted(scored, key=lambda row: -paired[row.contender])
    return sorted(scored, key=lambda row: -(row.miou or 0))


def _row(
    contest: Contest,
    contender: Contender,
    done: Sequence[RunAccount],
    base: Mapping[int, float],
    teacher_cost: TeacherCost | None,
) -> Row:
    by_seed = _by_seed(done)
    common = sorted(by_seed.keys() & base.keys())
    compared = common and contender != contest.baseline
    miou = statistics.fmean(by_seed.values()) if by_seed else None
    summaries = [account.summary for account in done if account.summary]
    training_s = mean_of_known(account.training_s for account in done)
    stored = teacher_cost if contender.source == "cache" else None
    whole_s, share_s = (
        (stored.whole_s(contender.passes), stored.share_s(contender.passes)) if stored else (0.0, 0.0)
    )
    teacher_miou = contest.teacher.get("miou")
    return Row(
        rank=None,
        contender=contender.name,
        label=contest.labels[contender.name],
        miou=miou,
        interval=clipped(mean_interval(list(by_seed.values())), (0.0, 1.0)),
        by_seed=by_seed,
        difference=paired_difference([by_seed[s] for s in common], [base[s] for s in common])
        if compared
        else None,
        pixel_accuracy=mean_of_known(summary.pixel_accuracy for summary in summaries),
        class_iou=_mean_class_iou(done),
        steps=mean_of_known(summary.steps for summary in summaries),
        training_s=training_s,
        with_teacher_s=None if training_s is None else training_s + whole_s,
        with_shared_teacher_s=None if training_s is None else training_s + share_s,
        over_teacher=miou / teacher_miou if miou is not None and teacher_miou else None,
    )


def _by_seed(accounts: Iterable[RunAccount]) -> dict[int, float]:
    return {account.start.seed: account.miou for account in accounts if account.miou is not None}


def _mean_class_iou(accounts: Sequence[RunAccount]) -> dict[str, float | None]:
    scores = [
        account.record.scores["iou"] for account in accounts if account.record and account.record.scores
    ]
    names = dict.fromkeys(name for iou in scores for name in iou)
    return {name: mean_of_known(iou.get(name) for iou in scores) for name in names}


def find_moves(rankings: Sequence[Ranking]) -> Iterator[Move]:
    """Contenders whose place differs, among those that have a score on both clocks: a failed run moves nobody else."""
    for timed, counted in pair_clocks(rankings):
        by_time, by_steps = timed.ranks(), counted.ranks()
        common = by_time.keys() & by_steps.keys()
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


def pair_clocks(rankings: Sequence[Ranking]) -> list[tuple[Ranking, Ranking]]:
    """By time and by steps, those of one budget.

    The others in their order where they are as many, else each by time with that by steps that shares most with it.
    """
    timed, counted = ([r for r in rankings if r.rung.clock == clock] for clock in ("time", "steps"))
    pairs = [(t, c) for t in timed for c in counted if t.rung.budget_s == c.rung.budget_s]
    timed = [ranking for ranking in timed if all(ranking is not t for t, _ in pairs)]
    counted = [ranking for ranking in counted if all(ranking is not c for _, c in pairs)]
    if len(timed) == len(counted):
        return [*pairs, *zip(timed, counted, strict=True)]
    if not counted:
        return pairs
    return [
        *pairs,
        *((t, max(counted, key=lambda c: len(t.ranks().keys() & c.ranks().keys()))) for t in timed),
    ]
