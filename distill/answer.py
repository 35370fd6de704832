"""What a comparison says, in a few sentences, and only as far as its intervals allow."""

from collections.abc import Iterator, Sequence

from kdcache.distill.intervals import Difference, paired_difference
from kdcache.distill.standings import Move, Ranking, Row, Standings
from kdcache.distill.standingsreport import ranking_title


def main_ranking(standings: Standings) -> Ranking:
    """The longest rung of time, or of steps where there is no other."""
    clock = standings.contest.clocks[0]
    of_clock = [ranking for ranking in standings.rankings if ranking.rung.clock == clock]
    return max(of_clock, key=lambda ranking: ranking.rung.budget_s or ranking.rung.steps or 0)


def answer(standings: Standings) -> list[str]:
    """The main ranking against the baseline, its first against its second, and what the clock changes."""
    ranking, baseline = main_ranking(standings), standings.contest.baseline.name
    scored = [row for row in ranking.rows if row.miou is not None]
    if not scored:
        return ["No run on the longest budget has a score yet."]
    if all(row.contender == baseline for row in scored):
        return [f"Only {baseline} has a score yet."]
    said = [_against_baseline(scored, baseline, ranking_title(ranking))]
    said += [_at_the_top(scored)] if len(scored) > 1 else []
    return said + list(_by_clock(standings, ranking))


def points(value: float) -> str:
    """A difference of fractions in points, signed."""
    return f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def interval_text(difference: Difference) -> str:
    """As in "+1.20 (0.40 to 2.00)"."""
    if difference.low is None or difference.high is None:
        return points(difference.mean)
    low, high = (f"{100 * value:.2f}".replace("-", "\N{MINUS SIGN}") for value in (difference.low, difference.high))
    return f"{points(difference.mean)} ({low} to {high})"


def _against_baseline(scored: Sequence[Row], baseline: str, length: str) -> str:
    compared = [(row.contender, row.difference) for row in scored if row.difference]
    if not compared:
        return f"After {length}, {scored[0].contender} is first; {baseline} has no score to compare with."
    if all(difference.separable is None for _, difference in compared):
        name, difference = compared[0]
        return (
            f"After {length}, {name} is {points(difference.mean)} points from {baseline}, with one seed: "
            "no difference here can be told from chance."
        )
    above = [(name, d) for name, d in compared if d.separable and d.mean > 0]
    below = [(name, d) for name, d in compared if d.separable and d.mean < 0]
    open_ = [name for name, d in compared if not d.separable]
    clauses = []
    if above:
        clauses.append(f"{_listed(above)} {_are(above)} better than {baseline}")
    if below:
        clauses.append(f"{_listed(below)} {_are(below)} worse" + ("" if above else f" than {baseline}"))
    if open_:
        what = "it" if clauses else baseline
        clauses.append(f"{_and(open_)} {_are(open_)} not separable from {what}")
    return f"After {length}, {'; '.join(clauses)}."


def _at_the_top(scored: Sequence[Row]) -> str:
    """The first against those after it, down to the one that it can be told from."""
    first, tied = scored[0], []
    for row in scored[1:]:
        seeds = sorted(first.by_seed.keys() & row.by_seed.keys())
        if not seeds:
            break
        gap = paired_difference([first.by_seed[s] for s in seeds], [row.by_seed[s] for s in seeds])
        if gap.separable is None:
            return f"{first.contender} came first."
        if gap.separable:
            break
        tied.append(row.contender)
    if not tied:
        return f"{first.contender} is first, separable from what comes after it."
    return f"{first.contender} came first, not separable from {_and(tied)}."


def _by_clock(standings: Standings, ranking: Ranking) -> Iterator[str]:
    counted = [other for other in standings.rankings if other.rung.clock != ranking.rung.clock]
    if not counted or not any(row.miou is not None for other in counted for row in other.rows):
        return
    moves = [move for move in standings.moves if move.time_rung == ranking.rung.name]
    if not moves:
        yield "The same order stands at equal steps."
        return
    furthest = max(moves, key=_distance)
    yield (
        f"At equal steps {len(moves)} of {len(ranking.ranks())} change place: {furthest.contender} is number "
        f"{furthest.by_steps} by steps and {furthest.by_time} by time."
    )


def _distance(move: Move) -> int:
    return abs(move.by_time - move.by_steps)


def _listed(found: Sequence[tuple[str, Difference]]) -> str:
    return _and([f"{name} {interval_text(difference)}" for name, difference in found])


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _are(names: Sequence[object]) -> str:
    return "is" if len(names) == 1 else "are"
