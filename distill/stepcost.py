"""What a step of each contender costs, by part, and over the baseline's.

The time of a step is a median over the steps between lines of metrics, over all complete runs on the first clock.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kdcache.distill.account import COMPLETE, Outcome
from kdcache.distill.clock import BACKWARD, FORWARD, OPTIMISER, PARTS
from kdcache.distill.contest import Contender, Contest
from kdcache.distill.intervals import mean_interval

COMPUTE = (PARTS[FORWARD], PARTS[BACKWARD], PARTS[OPTIMISER])
"""Parts of a step that the device computes in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """A step of a contender, in seconds.

    `student_s` is the computation of a baseline's step, `loss_s` what a method from the cache computes beyond that, and
    `teacher_s` what the method computes beyond its cached self when its teacher runs along; None where the comparison
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


def measure_costs(contest: Contest, outcomes: Sequence[Outcome]) -> list[Cost]:
    """Of all runs on the first clock that are complete; the repetition tells of the machine, not of the method."""
    timed = [
        o
        for o in outcomes
        if o.status == COMPLETE and o.start.rung.clock == contest.clocks[0] and not o.start.again
    ]
    step_s = {o.start: o.summary.step_s for o in timed if o.summary}
    parts = {
        contender: _mean_parts(
            [o.record.profile() for o in timed if o.record and o.start.contender == contender]
        )
        for contender in contest.contenders
    }
    costs = []
    for contender in contest.contenders:
        own = {start: seconds for start, seconds in step_s.items() if start.contender == contender}
        if not own:
            continue
        base = [(start, step_s.get(replace(start, contender=contest.baseline))) for start in own]
        ratios = [own[start] / seconds for start, seconds in base if seconds]
        costs.append(
            Cost(
                contender=contender.name,
                step_s=statistics.median(own.values()),
                over_baseline=statistics.fmean(ratios) if ratios else None,
                over_baseline_interval=mean_interval(ratios),
                parts=parts[contender],
                student_s=_compute_s(parts[contest.baseline]),
                loss_s=_beyond(_cached_parts(contender, parts), parts[contest.baseline]),
                teacher_s=_beyond(parts[contender], _cached_parts(contender, parts))
                if contender.source == "online"
                else None,
            )
        )
    return costs


def _mean_parts(profiles: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Empty where no run has a profile."""
    known = [profile for profile in profiles if profile]
    return {words: statistics.fmean(p[words] for p in known) for words in (PARTS.values() if known else ())}


def _compute_s(parts: Mapping[str, float]) -> float | None:
    return sum(parts[words] for words in COMPUTE) if parts else None


def _beyond(parts: Mapping[str, float], less: Mapping[str, float]) -> float | None:
    """Seconds of computation in `parts` above those in `less`."""
    one, other = _compute_s(parts), _compute_s(less)
    return None if one is None or other is None else one - other


def _cached_parts(
    contender: Contender, parts: Mapping[Contender, Mapping[str, float]]
) -> Mapping[str, float]:
    """Of the contender's method from the cache: its own, or those of its first row that is; empty without one."""
    if contender.source == "cache":
        return parts[contender]
    same = (of for c, of in parts.items() if (c.method, c.source) == (contender.method, "cache"))
    return next(same, {})
