"""A contender: a row of the standings, which is a method and where its views and its targets come from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

BASELINE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A method, and where its views and its targets come from."""

    method: str
    source: str = "cache"
    fresh_views: bool = False
    passes: int | None = None  # of the store; None for all that the comparison has

    @property
    def name(self) -> str:
        """Short and unique, also as a part of a file's name: `logit`, `none-bank`, `logit-online`, `logit-views-4`."""
        words = [self.method]
        if self.source == "online":
            words.append("online")
        if self.source == "none" and not self.fresh_views:
            words.append("bank")
        if self.passes is not None:
            words.append(f"views-{self.passes}")
        return "-".join(words)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of TrainConfig."""
        return asdict(self)


def make_contenders(
    methods: Sequence[str], *, online: Sequence[str] = (), views: Sequence[int] = (), fresh_views: bool = True
) -> tuple[Contender, ...]:
    """The rows of a comparison, the baseline first: `none` where it is among the methods, else the first one.

    Args:
        online: methods whose teacher runs along too, over fresh views: the limit of what views can bring.
        views: numbers of passes; each method from the cache is confined to each. Empty for all passes alone.
        fresh_views: `none` draws fresh views, and a second row of it has the store's. Else the store's alone.
    """
    rows = []
    for method in sorted(methods, key=lambda name: name != BASELINE):
        if method == BASELINE and fresh_views:
            rows.append(Contender(method=method, source="none", fresh_views=True))
        if method == BASELINE:
            rows.append(Contender(method=method, source="none"))
        else:
            rows += [Contender(method=method, passes=passes) for passes in views or (None,)]
    rows += [Contender(method=method, source="online", fresh_views=True) for method in online]
    return tuple(rows)
