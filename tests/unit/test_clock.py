"""The clock: which time counts, under which part; and when waiting for data is reported."""

import pytest
import torch

from kdcache.distill import clock as clock_module
from kdcache.distill.clock import (
    BACKWARD,
    COPY,
    OTHER,
    PARTS,
    WAIT,
    WAIT_LIMIT,
    WINDOW_S,
    WINDOW_STEPS,
    Clock,
    WaitWatch,
)


@pytest.fixture
def passes(monkeypatch):
    """A function that advances the time by some seconds."""
    now = [100.0]
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_parts_add_up_and_start_up_counts_for_nothing(passes):
    clock = Clock(torch.device("cpu"))
    assert clock.lap() == (0.0, dict.fromkeys(PARTS, 0.0))
    clock.mark(OTHER)
    passes(50.0)
    clock.mark(WAIT)  # the first batch
    passes(1.0)
    clock.mark(COPY)
    passes(2.0)
    clock.mark(BACKWARD)
    assert clock.lap() == (3.0, {**dict.fromkeys(PARTS, 0.0), COPY: 1.0, BACKWARD: 2.0})
    passes(0.5)
    clock.mark(OTHER)
    passes(4.0)
    clock.mark(WAIT)
    assert clock.lap() == (4.5, {**dict.fromkeys(PARTS, 0.0), OTHER: 0.5, WAIT: 4.0})


def test_time_inside_stopped_does_not_count(passes):
    clock = Clock(torch.device("cpu"))
    clock.mark(WAIT)
    passes(1.0)
    with clock.stopped():
        passes(30.0)
    passes(2.0)
    clock.mark(BACKWARD)
    assert clock.lap() == (3.0, {**dict.fromkeys(PARTS, 0.0), OTHER: 1.0, BACKWARD: 2.0})


def test_stopping_before_the_first_batch_does_not_start_the_clock(passes):
    clock = Clock(torch.device("cpu"))
    with clock.stopped():
        passes(30.0)
    passes(5.0)
    assert clock.lap()[0] == 0.0
    clock.mark(WAIT)
    passes(1.0)
    clock.mark(COPY)
    assert clock.lap() == (1.0, {**dict.fromkeys(PARTS, 0.0), COPY: 1.0})


def test_waiting_is_told_once_and_only_over_a_whole_window():
    watch = WaitWatch()
    step_s = WINDOW_S / WINDOW_STEPS
    told = [watch.observe(seconds=step_s, wait_s=0.5 * step_s, steps=1) for _ in range(4 * WINDOW_STEPS)]
    assert told[WINDOW_STEPS - 1] == pytest.approx(0.5)
    assert [share for share in told if share is not None] == told[WINDOW_STEPS - 1 : WINDOW_STEPS]


def test_a_little_waiting_is_not_told():
    watch = WaitWatch()
    told = {
        watch.observe(seconds=WINDOW_S, wait_s=WAIT_LIMIT * WINDOW_S, steps=WINDOW_STEPS) for _ in range(5)
    }
    assert told == {None}
    slow_start = WaitWatch()  # one pause, which is little over a longer window
    assert slow_start.observe(seconds=1.0, wait_s=1.0, steps=1) is None
    assert slow_start.observe(seconds=99.0, wait_s=0.0, steps=99) is None


@pytest.mark.gpu
def test_on_a_gpu_waiting_is_what_the_device_stood_still_for():
    device = torch.device("cuda")
    clock, work = Clock(device), torch.randn(2000, 2000, device=device)
    for part in (WAIT, BACKWARD):
        clock.mark(part)
        work = work @ work / 2000
    clock.mark(OTHER)
    work.sum().item()
    seconds, parts = clock.lap()
    assert parts[BACKWARD] > 0 and parts[WAIT] == 0.0
    assert sum(parts.values()) <= seconds
