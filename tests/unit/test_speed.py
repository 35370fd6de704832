"""What a probe measures, and that it leaves nothing behind."""

import logging
from itertools import count

import fsspec
import pytest

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.remote import RemoteObjects
from kdcache.cache.storage.speed import MAX_PROBE_BYTES, measure_storage


@pytest.fixture
def steps(monkeypatch):
    """A clock by which every operation takes half a second."""
    ticks = count(step=0.5)
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))


@pytest.mark.usefixtures("steps")
@pytest.mark.parametrize(
    ("object_bytes", "piece_bytes", "written", "read"),
    [
        (1000, 300, 1000, 900),  # three pieces of 300
        (1000, 5000, 1000, 1000),  # an object smaller than a piece
        (100_000, 100, 100_000, 6400),  # 64 pieces at most
        (10**9, 10**9, MAX_PROBE_BYTES, MAX_PROBE_BYTES),
        (0, 0, 1, 1),
    ],
)
def test_speeds_are_bytes_over_seconds(tmp_path, object_bytes, piece_bytes, written, read):
    speed = measure_storage(str(tmp_path), object_bytes=object_bytes, piece_bytes=piece_bytes)
    assert (speed.write_bytes_per_s, speed.read_bytes_per_s) == (written / 0.5, read / 0.5)


def test_nothing_is_left_of_a_home_that_stands_and_of_one_that_does_not(tmp_path):
    (tmp_path / "kept").write_bytes(b"x")
    for home in (str(tmp_path), str(tmp_path / "new" / "home"), f"memory://{tmp_path.name}"):
        measure_storage(home, object_bytes=1000, piece_bytes=100)
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    assert fsspec.filesystem("memory").find(f"/{tmp_path.name}") == []


def test_nothing_is_left_of_a_probe_that_fails(tmp_path, monkeypatch):
    def fail(self, path, start, length):
        raise KDCacheError("cannot read")

    monkeypatch.setattr(LocalObjects, "read_range", fail)
    with pytest.raises(KDCacheError, match="cannot read"):
        measure_storage(str(tmp_path), object_bytes=1000, piece_bytes=100)
    assert [*tmp_path.iterdir()] == []


def test_a_bucket_that_lets_nobody_delete_is_measured_all_the_same(tmp_path, monkeypatch, caplog):
    def deny(self):
        raise KDCacheError("cannot remove memory://x: Access Denied")

    monkeypatch.setattr(RemoteObjects, "remove_all", deny)
    monkeypatch.setattr(logging.getLogger("kdcache"), "propagate", True)
    assert measure_storage(f"memory://{tmp_path.name}", object_bytes=10, piece_bytes=10).object_bytes == 10
    assert "cannot remove memory://x: Access Denied; please delete it yourself" in caplog.text
