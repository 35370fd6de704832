"""What keeps the numbers of a comparison from meaning what they seem to, a sentence each.

Two kinds: a doubt says that a whole ranking shows nothing reliable, so that its numbers lose their decimals and its places
are left out; a caution leaves the numbers as they are.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdcache.distill.compare.account import COMPLETE, RunAccount
from kdcache.distill.compare.contest import Contest, quoted
from kdcache.distill.compare.ranking import Ranking
from kdcache.distill.report.record import FEWEST_STEPS, weak_teacher

STEADY = 0.05
"""A machine whose steps drift by more than this is worth a caution."""

UNSTEADY = 0.20
"""A machine whose steps differ by more than this, for the same work, gives no ranking."""

ROUNDED = " Scores are rounded to whole percent, and places are left out."
"""How every doubt ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """The baseline twice, with one seed: first among the others, then at the end of what was asked."""

    rung: str
    seed: int
    again: int  # the n-th repetition, for an extension of what was asked
    miou: tuple[float | None, float | None]
    steps: tuple[int, int]
    step_s: tuple[float, float]

    @property
    def step_drift(self) -> float:
        """Relative change of the time of a step from the first run to the last."""
        return self.step_s[1] / self.step_s[0] - 1 if self.step_s[0] else 0.0


def measure_noise(accounts: Sequence[RunAccount]) -> Iterator[Noise]:
    """Of every complete repetition of the baseline whose first run is complete too."""
    done = {account.start.name: account for account in accounts if account.status == COMPLETE}
    for account in done.values():
        first = done.get(replace(account.start, again=0).name) if account.start.again else None
        if first and first.summary and account.summary:
            one, other = first.summary, account.summary
            yield Noise(
                rung=account.start.rung.name,
                seed=account.start.seed,
                again=account.start.again,
                miou=(one.miou, other.miou),
                steps=(one.steps, other.steps),
                step_s=(one.step_s, other.step_s),
            )


def find_doubt(contest: Contest, ranking: Ranking, accounts: Sequence[RunAccount]) -> str | None:
    """Why a ranking shows nothing reliable; None where it may."""
    baseline = contest.baseline.name
    scored = [row for row in ranking.rows if row.miou is not None]
    short = [row.contender for row in scored if row.is_short]
    finding = f"After {ranking.title}, these runs show nothing reliable"
    if scored and (baseline in short or len(short) == len(scored)):
        fewest = min(row.steps or 0 for row in scored)
        return f"{finding}: they have fewer than {FEWEST_STEPS} steps, the shortest {fewest:.0f}.{ROUNDED}"
    spread = _baseline_spread(contest, ranking, accounts)
    if scored and spread > UNSTEADY:
        return (
            f"{finding}: a step of {quoted(contest.labels[baseline])} took {100 * spread:.0f} % longer in one of its "
            f"runs than in another, for the same work.{ROUNDED}"
        )
    return None


def _baseline_spread(contest: Contest, ranking: Ranking, accounts: Sequence[RunAccount]) -> float:
    """How much longer the slowest step of the baseline took than the fastest, over the runs of one clock."""
    step_s = [
        account.summary.step_s
        for account in accounts
        if account.status == COMPLETE and account.summary and account.summary.step_s
        if account.start.contender == contest.baseline and account.start.rung.clock == ranking.rung.clock
    ]
    return max(step_s) / min(step_s) - 1 if step_s else 0.0


def find_cautions(
    contest: Contest,
    accounts: Sequence[RunAccount],
    rankings: Sequence[Ranking],
    noise: Sequence[Noise],
    differing: Sequence[str],  # names of what differs in the runs' environments
) -> list[str]:
    """All of them, the doubts first."""
    return [
        *(ranking.doubt for ranking in rankings if ranking.doubt),
        *_short(rankings),
        *_drift(noise, rankings),
        *_cut_off(accounts),
        *_seeds(rankings),
        *([f"The runs differ in {', '.join(differing)}."] if differing else []),
        *_other_teacher(accounts),
        *_weak_teacher(contest, rankings),
    ]


def _short(rankings: Sequence[Ranking]) -> Iterator[str]:
    for ranking in rankings:
        short = [quoted(row.label) for row in ranking.rows if row.is_short and row.miou is not None]
        if short and ranking.doubt is None:
            yield (
                f"After {ranking.title}, {', '.join(short)} had fewer than {FEWEST_STEPS} steps: too few to judge by, so "
                "these scores are rounded to whole percent."
            )


def _drift(noise: Sequence[Noise], rankings: Sequence[Ranking]) -> Iterator[str]:
    titles = {ranking.rung.name: ranking.short_title for ranking in rankings}
    for each in noise:
        if abs(each.step_drift) > STEADY:
            change = "longer" if each.step_drift > 0 else "less"
            yield (
                f"In the runs of {titles[each.rung]}, a step of the baseline took {100 * abs(each.step_drift):.0f} % {change} "
                "at the end than at the beginning: costs, and places by time, are only as certain as that."
            )


def _cut_off(accounts: Sequence[RunAccount]) -> Iterator[str]:
    early = [a.start.name for a in accounts if a.summary and a.summary.ended_by_clock]
    if early:
        runs = "1 run" if len(early) == 1 else f"{len(early)} runs"
        yield f"The time of {runs} was up before the learning rate had reached its last value: {', '.join(early)}."


def _seeds(rankings: Sequence[Ranking]) -> Iterator[str]:
    if uneven := [ranking.short_title for ranking in rankings if ranking.seeds_differ]:
        yield (
            f"After {' and after '.join(uneven)}, some methods have more seeds than others: places are by the difference to the "
            "baseline, paired by seed."
        )


def _other_teacher(accounts: Sequence[RunAccount]) -> Iterator[str]:
    asked: Iterable[Mapping[str, Any]] = [
        a.record.inputs.get("teacher") or {} for a in accounts if a.record and a.record.teacher
    ]
    if len({teacher.get("weights_sha256") for teacher in asked}) > 1:
        yield (
            "The teacher that ran at every step has other weights than the store's: its runs are not a limit of the others."
        )


def _weak_teacher(contest: Contest, rankings: Sequence[Ranking]) -> list[str]:
    rows = [row for ranking in rankings for row in ranking.rows if row.contender == contest.baseline.name]
    best = max((row.miou for row in rows if row.miou is not None), default=None)
    teacher_miou = contest.teacher.get("miou")
    return [] if teacher_miou is None or best is None else weak_teacher(teacher_miou, best)
