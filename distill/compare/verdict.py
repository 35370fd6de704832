"""What a comparison says, in a few sentences, and only as far as its intervals allow."""

from collections.abc import Iterator, Sequence

from kdcache.distill.compare.intervals import Difference, paired_difference
from kdcache.distill.compare.markdown import ranking_title
from kdcache.distill.compare.ranking import Move, Ranking, Row, pair_clocks
from kdcache.distill.compare.standings import Standings


def answer(standings: Standings) -> list[str]:
    """Which came first, what it can be told from, how many can be told from the baseline, what the clock changes."""
    ranking, baseline = standings.main, standings.contest.baseline.name
    scored = [row for row in ranking.rows if row.miou is not None]
    if not scored:
        return [f"No run of {ranking_title(ranking)} has a score yet."]
    if all(row.contender == baseline for row in scored):
        return [f"Only {baseline} has a score yet."]
    said = [_at_the_top(scored, baseline, ranking_title(ranking)), _against_baseline(scored, baseline)]
    return [sentence for sentence in said if sentence] + list(_by_clock(standings, ranking))


def points(value: float) -> str:
    """A difference of fractions in points, signed."""
    return f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def interval_text(difference: Difference) -> str:
    """As in "+1.20 (0.40 to 2.00)"."""
    if difference.low is None or difference.high is None:
        return points(difference.mean)
    low, high = (
        f"{100 * value:.2f}".replace("-", "\N{MINUS SIGN}") for value in (difference.low, difference.high)
    )
    return f"{points(difference.mean)} ({low} to {high})"


def _at_the_top(scored: Sequence[Row], baseline: str, length: str) -> str:
    """The first, over the baseline, and against those after it, down to the one that it can be told from."""
    first, difference = scored[0], scored[0].difference
    came = f"After {length}, {first.contender} came first"
    if difference:
        came += f", {interval_text(difference)} points of mIoU over {baseline}"
    tied = []
    for row in scored[1:]:
        seeds = sorted(first.by_seed.keys() & row.by_seed.keys())
        gap = (
            paired_difference([first.by_seed[s] for s in seeds], [row.by_seed[s] for s in seeds])
            if seeds
            else None
        )
        if gap is None or gap.separable is None:
            return f"{came}: with one seed, no difference here can be told from chance."
        if gap.separable:
            break
        tied.append(row.contender)
    return (
        f"{came}, not separable from {_and(tied)}."
        if tied
        else f"{came}, and apart from what comes after it."
    )


def _against_baseline(scored: Sequence[Row], baseline: str) -> str:
    """How many are better, worse, or neither; nothing where no difference has an interval."""
    found = [row.difference for row in scored if row.difference and row.difference.separable is not None]
    better = sum(bool(d.separable) and d.mean > 0 for d in found)
    worse = sum(bool(d.separable) and d.mean < 0 for d in found)
    if not found:
        return ""
    return (
        f"Of {len(found)} compared with {baseline}, {better} are better, {worse} worse, and {len(found) - better - worse} "
        "not separable from it."
    )


def _by_clock(standings: Standings, ranking: Ranking) -> Iterator[str]:
    pairs = (pair for pair in pair_clocks(standings.rankings) if any(of is ranking for of in pair))
    timed, counted = next(pairs, (ranking, ranking))
    common = timed.ranks().keys() & counted.ranks().keys()
    if timed is counted or len(common) < 2:
        return
    other = "steps" if ranking is timed else "time"
    moves = [
        move
        for move in standings.moves
        if (move.time_rung, move.steps_rung) == (timed.rung.name, counted.rung.name)
    ]
    if not moves:
        yield f"The same order stands at equal {other}."
        return
    furthest = max(moves, key=_distance)
    yield (
        f"At equal {other} {len(moves)} of {len(common)} change place: {furthest.contender} is number "
        f"{furthest.by_steps} by steps and {furthest.by_time} by time."
    )


def _distance(move: Move) -> int:
    return abs(move.by_time - move.by_steps)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
