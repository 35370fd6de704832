"""What a comparison says, in a few sentences, and only as far as its intervals allow."""

from collections.abc import Iterator, Sequence

from kdcache.distill.compare.cautions import ROUNDED
from kdcache.distill.compare.contest import quoted
from kdcache.distill.compare.intervals import paired_difference
from kdcache.distill.compare.ranking import Move, Ranking, Row, pair_clocks
from kdcache.distill.compare.standings import Standings
from kdcache.distill.report.model import interval_text


def conclude(standings: Standings) -> list[str]:
    """Which method came first, which others it beats beyond chance, how many beat the baseline, what the clock changes."""
    ranking, name = standings.main, standings.contest.baseline.name
    baseline = quoted(standings.contest.labels[name])
    scored = [row for row in ranking.rows if row.miou is not None]
    if not scored:
        return [f"No run of {ranking.title} has a score yet."]
    if all(row.contender == name for row in scored):
        return [f"Only {baseline} has a score yet."]
    if ranking.doubt:
        return [ranking.doubt.removesuffix(ROUNDED)]  # a winner of rounded scores could be chance
    said = [_at_the_top(ranking, scored, baseline), _against_baseline(scored, baseline)]
    return [sentence for sentence in said if sentence] + list(_by_clock(standings, ranking))


def _at_the_top(ranking: Ranking, scored: Sequence[Row], baseline: str) -> str:
    """The first, over the baseline, and against those after it, down to the one that it beats beyond chance."""
    first, difference = scored[0], scored[0].difference
    came = f"After {ranking.title}, {quoted(first.label)} came first"
    if difference:
        gain = interval_text((difference.mean, difference.low, difference.high), ranking.is_coarse(first))
        came += f", {gain} points of mIoU over {baseline}"
    tied = []
    for row in scored[1:]:
        seeds = sorted(first.by_seed.keys() & row.by_seed.keys())
        gap = (
            paired_difference([first.by_seed[s] for s in seeds], [row.by_seed[s] for s in seeds])
            if seeds
            else None
        )
        if gap is None or gap.separable is None:
            return f"{came}: with one seed, every difference here could be chance."
        if gap.separable:
            break
        tied.append(quoted(row.label))
    if tied:
        return f"{came}; its lead over {_and(tied)} could be chance."
    return f"{came}, beyond chance against all others."


def _against_baseline(scored: Sequence[Row], baseline: str) -> str:
    """How many are better, worse, or neither; nothing where no difference has an interval."""
    found = [row.difference for row in scored if row.difference and row.difference.separable is not None]
    if not found:
        return ""
    better = sum(bool(d.separable) and d.mean > 0 for d in found)
    worse = sum(bool(d.separable) and d.mean < 0 for d in found)
    if len(found) == 1:
        verdict = "is better" if better else "is worse" if worse else "differs by no more than chance"
        return f"The one method compared with {baseline} {verdict}."
    open_ = len(found) - better - worse
    counts = [(better, "better"), (worse, "worse")]
    said = [f"{count} {'is' if count == 1 else 'are'} {word}" for count, word in counts if count]
    if open_:
        said.append(f"{open_} could differ by chance alone")
    return f"Of {len(found)} methods compared with {baseline}, {_and(said)}."


def _by_clock(standings: Standings, ranking: Ranking) -> Iterator[str]:
    pairs = (pair for pair in pair_clocks(standings.rankings) if any(of is ranking for of in pair))
    timed, counted = next(pairs, (ranking, ranking))
    common = timed.ranks().keys() & counted.ranks().keys()
    if timed is counted or len(common) < 2 or timed.doubt or counted.doubt:
        return
    other = "steps" if ranking is timed else "time"
    moves = [
        move
        for move in standings.moves
        if (move.time_rung, move.steps_rung) == (timed.rung.name, counted.rung.name)
    ]
    if not moves:
        yield f"The order is the same at equal {other}."
        return
    furthest = max(moves, key=_distance)
    label = quoted(standings.contest.labels[furthest.contender])
    yield (
        f"At equal {other}, {len(moves)} of {len(common)} change place: {label} is number "
        f"{furthest.by_steps} by steps and {furthest.by_time} by time."
    )


def _distance(move: Move) -> int:
    return abs(move.by_time - move.by_steps)


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
