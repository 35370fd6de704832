"""The pace leaves out the first call, which warms up."""

import pytest

from kdcache.cache.progress import Pace


def test_the_time_before_the_first_call_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 102.0, 106.0, 110.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    told = []
    pace = Pace(lambda done, total, note: told.append((done, total, note)))
    assert pace.seconds_per_call is None
    pace(8, 24, "a")
    assert pace.seconds_per_call is None
    pace(16, 24, "b")
    pace(24, 24, "c")
    assert pace.seconds_per_call == 3
    assert pace.seconds_since_first() == 10
    assert told == [(8, 24, "a"), (16, 24, "b"), (24, 24, "c")]
