"""Paired differences over seeds, with Student's interval: as much as a handful of runs can show."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Mean of paired differences, and the interval that contains the true one in 95 of 100 experiments."""

    mean: float
    pairs: int
    low: float | None  # None for a single pair, which says nothing about its own error
    high: float | None

    @property
    def separable(self) -> bool | None:
        """Whether zero lies outside of the interval: else the difference could be chance. None for a single pair."""
        return None if self.low is None or self.high is None else not self.low <= 0 <= self.high

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "separable": self.separable}


def paired_difference(values: Sequence[float], base: Sequence[float]) -> Difference:
    """`values` minus `base`, pair by pair: both of the same seeds, in the same order, one at least."""
    differences = [value - other for value, other in zip(values, base, strict=True)]
    low, high = mean_interval(differences) or (None, None)
    return Difference(mean=statistics.fmean(differences), pairs=len(differences), low=low, high=high)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Where the mean lies of what `values` are draws of, with CONFIDENCE; None for fewer than two."""
    if len(values) < 2:
        return None
    mean, count = statistics.fmean(values), len(values)
    half = student_quantile(CONFIDENCE, count - 1) * statistics.stdev(values) / math.sqrt(count)
    return mean - half, mean + half


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of what is not None; None where nothing is known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def student_quantile(confidence: float, freedom: int) -> float:
    """The t of which |T| stays below with probability `confidence`, for `freedom` = 1, 2, ... degrees."""
    low, high = 0.0, 1.0
    while _within(high, freedom) < confidence:
        high *= 2
    for _ in range(200):  # bisection, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """P(|T| < t): Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(1 + odd, freedom, 2):  # one term a power of the cosine up to freedom - 2
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
