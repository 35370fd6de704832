"""Budgets: converted to steps by timing the first ones, stopped by the clock, resumed."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill.config import TrainConfig
from kdcache.distill.schedule import HOLD_STEPS
from kdcache.distill.training.budget import Budget


def budget(n_images: int = 100, **length: float) -> Budget:
    config = TrainConfig.from_dict(
        {"out": "x", "method": "none", "source": "none", "dataset": "streets", "fresh_views": True, **length}
    )
    return Budget(config, n_images=n_images)


def run(
    rule: Budget, step_s: Callable[[int], float], step: int = 0, spent_s: float = 0.0, until: int = 10**6
) -> tuple[int, float, list[float]]:
    """The loop in small: (steps done, seconds, the fraction at each step)."""
    fractions = []
    while not rule.is_spent(step, spent_s) and step < until:
        fractions.append(rule.fraction(step))
        spent_s += step_s(step)
        step += 1
        rule.observe(step, spent_s)
    return step, spent_s, fractions


def even(step: int) -> float:
    return 1.0


def slow_start(step: int) -> float:
    return 20.0 if step < 2 else 1.0


def test_steps_stop_after_that_many() -> None:
    assert run(budget(steps=37), even)[0] == 37


@pytest.mark.parametrize(("epochs", "n_images", "steps"), [(2, 100, 25), (1, 9, 2), (3, 3, 2), (1, 8, 1)])
def test_epochs_are_read_to_their_end(epochs: int, n_images: int, steps: int) -> None:
    assert run(budget(n_images, epochs=epochs), even)[0] == steps  # 8 crops a step


def test_time_becomes_the_steps_that_it_holds() -> None:
    rule = budget(budget_seconds=100.0)
    assert rule.total_steps is None and rule.is_timing
    steps, spent_s, fractions = run(rule, even)
    assert (steps, spent_s, rule.total_steps) == (100, 100.0, 100)
    assert fractions[-1] == pytest.approx(89 / 90)


def test_the_first_two_steps_do_not_count_as_speed() -> None:
    rule = budget(budget_seconds=100.0)
    run(rule, slow_start)
    assert rule.total_steps == 62  # 40 s for two, 60 for the rest


def test_the_number_is_fixed_once() -> None:
    rule = budget(budget_seconds=100.0)
    run(rule, even, until=10)
    assert rule.total_steps == 100
    steps, spent_s, _ = run(rule, lambda step: 0.5, 10, 10.0)
    assert (steps, spent_s, rule.total_steps) == (100, 55.0, 100)


def test_the_clock_is_the_hard_stop() -> None:
    rule = budget(budget_seconds=100.0)
    steps, spent_s, fractions = run(rule, lambda step: 1.0 if step < 10 else 3.0)
    assert (steps, spent_s) == (40, 100.0)
    assert fractions[-1] == pytest.approx(29 / 90)


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.5, 1), (1.0, 1), (4.5, 5), (9.5, 10), (10.0, 10), (10.5, 10), (11.0, 11)]
)
def test_budgets_about_the_hold(seconds: float, steps: int) -> None:
    rule = budget(budget_seconds=seconds)
    done, _, fractions = run(rule, even)
    assert (done, rule.total_steps) == (steps, steps)
    assert set(fractions) == {0.0}


@given(st.floats(0.1, 500), st.floats(0.2, 5), st.floats(0, 60))
def test_a_run_with_that_number_of_steps_repeats_it(seconds: float, step_s: float, warm_up_s: float) -> None:
    timed = budget(budget_seconds=seconds)
    steps, _, fractions = run(timed, lambda step: step_s + (warm_up_s if step < 2 else 0.0))
    assert timed.total_steps is not None and steps <= timed.total_steps
    assert run(budget(steps=timed.total_steps), even)[2][:steps] == fractions


@pytest.mark.parametrize("at", [1, 2, 5, 8, 9, 10, 11, 50])
def test_resuming_keeps_the_account(at: int) -> None:
    whole = budget(budget_seconds=100.0)
    run(whole, even)
    first = budget(budget_seconds=100.0)
    step, spent_s, _ = run(first, even, until=at)
    second = budget(budget_seconds=100.0)
    second.load_state_dict(first.state_dict())
    assert run(second, even, step, spent_s)[:2] == (100, 100.0)
    assert second.total_steps == whole.total_steps


@pytest.mark.parametrize("at", [3, 6])
def test_the_warm_up_after_resuming_does_not_count_as_speed(at: int) -> None:
    first = budget(budget_seconds=100.0)
    step, spent_s, _ = run(first, even, until=at)
    second = budget(budget_seconds=100.0)
    second.load_state_dict(first.state_dict())
    run(second, lambda k: 11.0 if k < at + 2 else 1.0, step, spent_s)
    assert second.total_steps == 80  # warm-up took 20 s


def test_readings_every_ten_steps_still_give_a_number() -> None:
    rule = budget(budget_seconds=100.0)
    for step in range(10, 101, 10):
        rule.observe(step, float(step))
    assert rule.total_steps == 100


def test_a_clock_that_stands_still_is_no_division_by_zero() -> None:
    rule = budget(budget_seconds=1.0)
    rule.observe(HOLD_STEPS, 0.0)
    assert rule.total_steps == HOLD_STEPS + 10**6
