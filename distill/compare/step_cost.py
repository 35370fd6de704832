"""What a step of each contender costs, by part, and over the baseline's.

The time of a step is a median over the steps between lines of metrics. A contender is compared with the baseline in each
round, of one seed and length, so that a machine that is slower in some rounds slows both.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdcache.distill.clock import BACKWARD, FORWARD, OPTIMISER, PARTS
from kdcache.distill.compare.account import COMPLETE, RunAccount
from kdcache.distill.compare.contest import Contender, Contest, Start
from kdcache.distill.compare.intervals import mean_interval, mean_of_known

COMPUTE = (PARTS[FORWARD], PARTS[BACKWARD], PARTS[OPTIMISER])
"""Parts of a step that the device computes in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A step of a contender, in seconds.

    `student_s` is the computation of a baseline's step, `loss_s` what a method from the cache computes beyond that, and
    `teacher_s` what the method computes beyond its cached self when its teacher runs at every step; None where the comparison
    has no such contender.
    """

    contender: str
    step_s: float
    over_baseline: float | None  # the mean ratio over seeds; None where the baseline was not timed
    over_baseline_interval: tuple[float, float] | None
    parts: Mapping[str, float]  # by clock.PARTS' words
    student_s: float | None
    loss_s: float | None
    teacher_s: float | None


def measure_costs(contest: Contest, accounts: Sequence[RunAccount]) -> list[Cost]:
    """Of all runs that are complete; repetitions show the machine, not the method."""
    timed = {a.start: a for a in accounts if a.status == COMPLETE and not a.start.again}
    costs = []
    for contender in contest.contenders:
        own = [account for start, account in timed.items() if start.contender == contender]
        base = [timed.get(replace(account.start, contender=contest.baseline)) for account in own]
        if own:
            costs.append(_cost(contender, own, base, _cached(contest, contender, own, timed)))
    return costs


Others = Sequence[RunAccount | None]  # of other contenders in the same rounds; None where a round has none


def _cost(contender: Contender, own: Sequence[RunAccount], base: Others, cached: Others) -> Cost:
    ratios = [_step_s(one) / _step_s(other) for one, other in zip(own, base, strict=True) if _step_s(other)]
    return Cost(
        contender=contender.name,
        step_s=statistics.median(map(_step_s, own)),
        over_baseline=statistics.fmean(ratios) if ratios else None,
        over_baseline_interval=mean_interval(ratios),
        parts=_mean_parts([parts for account in own if (parts := _parts(account))]),
        student_s=mean_of_known([_compute_s(account) for account in base]),
        loss_s=_mean_beyond(cached, base),
        teacher_s=_mean_beyond(own, cached) if contender.source == "online" else None,
    )


def _cached(
    contest: Contest, contender: Contender, own: Sequence[RunAccount], timed: Mapping[Start, RunAccount]
) -> Others:
    """The same method from the cache: itself, or the first row of it that is; of the baseline nothing."""
    same = (c for c in contest.contenders if (c.method, c.source) == (contender.method, "cache"))
    cached = contender if contender.source == "cache" else next(same, None)
    return [timed.get(replace(a.start, contender=cached)) if cached else None for a in own]


def _step_s(account: RunAccount | None) -> float:
    return account.summary.step_s if account and account.summary else 0.0


def _parts(account: RunAccount | None) -> Mapping[str, float]:
    """Seconds by clock.PARTS' words; empty where the run has no profile."""
    return account.record.profile() if account and account.record else {}


def _mean_parts(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {words: statistics.fmean(p[words] for p in profiles) for words in PARTS.values() if profiles}


def _compute_s(account: RunAccount | None) -> float | None:
    parts = _parts(account)
    return sum(parts[words] for words in COMPUTE) if parts else None


def _mean_beyond(more: Others, less: Others) -> float | None:
    """Seconds of computation in `more` above those of the same round in `less`."""
    pairs = [(_compute_s(one), _compute_s(other)) for one, other in zip(more, less, strict=True)]
    return mean_of_known([None if one is None or other is None else one - other for one, other in pairs])
