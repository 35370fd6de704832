"""Standings by what was varied: the length of training, and the views in the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from kdcache.distill.compare.contest import Contender
from kdcache.distill.compare.ranking import Ranking, Row
from kdcache.distill.compare.standings import Standings

Points = Mapping[str, Sequence[tuple[float, Row]]]
"""By name, (length or views, row) in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ladder:
    """Contenders on several lengths of one clock."""

    clock: str
    points: Points  # by contender, over seconds or steps

    @classmethod
    def of(cls, standings: Standings) -> Self | None:
        """By time if there are several budgets, else by steps; None if no contender has two lengths."""
        charted = standings.contest.charted
        for clock in ("time", "steps"):
            found: dict[str, list[tuple[float, Row]]] = {}
            for ranking in standings.rankings:
                length = ranking.rung.budget_s if clock == "time" else ranking.steps
                if ranking.rung.clock == clock and length:
                    for row in ranking.rows:
                        if row.miou is not None:
                            found.setdefault(row.contender, []).append((length, row))
            climbed = {
                name: sorted(points, key=lambda point: point[0])
                for name, points in found.items()
                if len(points) > 1 and name in charted
            }
            if climbed:
                return cls(clock=clock, points=climbed)
        return None

    @property
    def lengths(self) -> list[float]:
        return sorted({length for points in self.points.values() for length, _ in points})


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """Methods over the number of views that they were confined to, on one length."""

    ranking: Ranking
    points: Points  # by method
    online: Mapping[str, Row]  # by method: its teacher ran at every step on fresh views

    @classmethod
    def of(cls, standings: Standings) -> Self | None:
        """Of the length where most numbers of views have a score, by steps before time; None where none has two."""
        found = [_views(standings, ranking) for ranking in standings.rankings]
        best = max(
            zip(standings.rankings, found, strict=True),
            key=lambda pair: (sum(map(len, pair[1].values())), pair[0].rung.order),
        )
        ranking, points = best
        if not points:
            return None
        contenders = _contenders(standings)
        online = {
            contenders[row.contender].method: row
            for row in ranking.rows
            if row.miou is not None and contenders[row.contender].source == "online"
        }
        return cls(ranking=ranking, points=points, online={m: r for m, r in online.items() if m in points})


def _views(standings: Standings, ranking: Ranking) -> dict[str, list[tuple[float, Row]]]:
    contenders = _contenders(standings)
    by_method: dict[str, list[tuple[float, Row]]] = {}
    for row in ranking.rows:
        contender = contenders[row.contender]
        views = contender.passes or standings.contest.passes
        if contender.source == "cache" and views and row.miou is not None:
            by_method.setdefault(contender.method, []).append((float(views), row))
    return {
        method: sorted(points, key=lambda point: point[0])
        for method, points in by_method.items()
        if len({views for views, _ in points}) > 1
    }


def _contenders(standings: Standings) -> dict[str, Contender]:
    """By name, as the rows of rankings have them."""
    return {contender.name: contender for contender in standings.contest.contenders}
