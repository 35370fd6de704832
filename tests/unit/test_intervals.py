"""Student's intervals against slow numerical integration, and against numbers computed by hand."""

import math

import numpy as np
import pytest

from kdcache.distill.compare.intervals import paired_difference, student_quantile


def probability_within(t: float, freedom: int) -> float:
    """P(|T| < t), the density summed over a fine grid."""
    x = (np.arange(200_000) + 0.5) * t / 200_000
    gamma = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    density = np.exp(gamma - (freedom + 1) / 2 * np.log1p(x**2 / freedom)) / math.sqrt(freedom * math.pi)
    return float(2 * density.mean() * t)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 10, 31])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_quantile_holds_its_probability(confidence: float, freedom: int) -> None:
    t = student_quantile(confidence, freedom)
    assert probability_within(t, freedom) == pytest.approx(confidence, abs=1e-7)


def test_a_difference_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of two degrees 4.302653.
    difference = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((2, 2 - half, 2 + half))
    assert difference.pairs == 3 and difference.separable is False


def test_only_an_interval_without_zero_separates() -> None:
    assert paired_difference([1.0, 1.1, 0.9], [0.0, 0.0, 0.0]).separable is True
    assert paired_difference([-1.0, -1.1, -0.9], [0.0, 0.0, 0.0]).separable is True
    assert paired_difference([1.0, -1.1, 0.9], [0.0, 0.0, 0.0]).separable is False
    assert paired_difference([1.0], [0.0]).separable is None
