"""Learning rates against their closed forms."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill import config as config_module
from kdcache.distill.config import TrainConfig
from kdcache.distill.schedule import HOLD_STEPS, SCHEDULES, learning_rate, spent_fraction


def config(**changes: object) -> TrainConfig:
    values = {
        "out": "x",
        "method": "none",
        "source": "none",
        "dataset": "streets",
        "fresh_views": True,
        "steps": 100,
    }
    return TrainConfig.from_dict({**values, **changes})


@pytest.mark.parametrize("power", [0.5, 0.9, 2.0])
@given(fraction=st.floats(0, 1))
def test_poly_is_its_closed_form(power: float, fraction: float) -> None:
    found = learning_rate(config(schedule="poly", power=power, lr=0.01, min_lr=1e-4), fraction)
    assert found == pytest.approx((0.01 - 1e-4) * (1 - fraction) ** power + 1e-4, rel=1e-12)


@given(fraction=st.floats(0, 1))
def test_cosine_is_its_closed_form(fraction: float) -> None:
    found = learning_rate(config(schedule="cosine", lr=0.02, min_lr=0.002), fraction)
    assert found == pytest.approx(0.002 + 0.009 * (1 + math.cos(math.pi * fraction)), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_falls_from_lr_to_min_lr(schedule: str) -> None:
    recipe = config(schedule=schedule, lr=0.3, min_lr=0.01)
    rates = [learning_rate(recipe, k / 50) for k in range(51)]
    assert rates[0] == 0.3
    assert rates[-1] == pytest.approx(0.01)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_the_config_knows_every_schedule() -> None:
    assert set(config_module.SCHEDULES) == set(SCHEDULES)


def test_the_fraction_is_held_and_then_runs_evenly() -> None:
    fractions = [spent_fraction(step, HOLD_STEPS + 4) for step in range(HOLD_STEPS + 5)]
    assert fractions == [0.0] * HOLD_STEPS + [0.0, 0.25, 0.5, 0.75, 1.0]


@given(st.integers(0, 10**6), st.none() | st.integers(1, 10**6))
def test_the_fraction_stays_between_0_and_1(step: int, total: int | None) -> None:
    assert 0 <= spent_fraction(step, total) <= 1


@given(st.integers(1, HOLD_STEPS))
def test_a_run_inside_the_hold_never_leaves_its_first_rate(total: int) -> None:
    assert {spent_fraction(step, total) for step in range(total)} == {0.0}
