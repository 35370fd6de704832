"""Teacher cost: what the stored targets of a comparison cost once, before any student was trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from kdcache.distill.account import COMPLETE, Outcome
from kdcache.distill.contest import Contest


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCost:
    """What the stored targets cost once, as the builders recorded it, for the passes that the runs used."""

    build_s: float
    passes: int
    runs: int  # those that used the store's targets
    shared_s: float  # for each of them


def measure_teacher_cost(contest: Contest, outcomes: Sequence[Outcome]) -> TeacherCost | None:
    """None where no complete run used stored targets, or no builder recorded its times."""
    by_pass = contest.teacher.get("build_s")
    used = [
        o.start.contender for o in outcomes if o.start.contender.source == "cache" and o.status == COMPLETE
    ]
    if not by_pass or not used:
        return None
    passes = max(contender.passes or len(by_pass) for contender in used)
    build_s = sum(by_pass[:passes])
    return TeacherCost(build_s=build_s, passes=passes, runs=len(used), shared_s=build_s / len(used))
