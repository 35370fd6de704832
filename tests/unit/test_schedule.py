"""Learning rates against their closed forms."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill.schedule import HOLD_STEPS, SCHEDULES, learning_rate, spent_fraction


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
@given(fraction=st.floats(0, 1))
def test_poly_is_its_closed_form(power: float, fraction: float) -> None:
    found = learning_rate("poly", fraction, start=0.01, end=1e-4, power=power)
    assert found == pytest.approx((0.01 - 1e-4) * (1 - fraction) ** power + 1e-4, rel=1e-12)


@given(fraction=st.floats(0, 1))
def test_cosine_is_its_closed_form(fraction: float) -> None:
    found = learning_rate("cosine", fraction, start=0.02, end=0.002, power=0.9)
    assert found == pytest.approx(0.002 + 0.009 * (1 + math.cos(math.pi * fraction)), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_falls_from_lr_to_min_lr(schedule: str) -> None:
    rates = [learning_rate(schedule, k / 50, start=0.3, end=0.01, power=0.9) for k in range(51)]
    assert rates[0] == 0.3
    assert rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_the_fraction_is_held_and_then_runs_evenly() -> None:
    fractions = [spent_fraction(step, HOLD_STEPS + 4) for step in range(HOLD_STEPS + 5)]
    assert fractions == [0.0] * HOLD_STEPS + [0.0, 0.25, 0.5, 0.75, 1.0]


@given(st.integers(0, 10**6), st.none() | st.integers(1, 10**6))
def test_the_fraction_stays_between_0_and_1(step: int, total: int | None) -> None:
    assert 0 <= spent_fraction(step, total) <= 1


@given(st.integers(1, HOLD_STEPS))
def test_a_run_inside_the_hold_never_leaves_its_first_rate(total: int) -> None:
    assert {spent_fraction(step, total) for step in range(total)} == {0.0}
