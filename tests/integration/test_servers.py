"""The servers for other tests do what those tests rely on."""

import time

import fsspec
import pytest


@pytest.mark.slow
def test_a_real_server_creates_once_and_keeps_what_it_has_across_a_kill(bucket, seaweed):
    fs, path = fsspec.core.url_to_fs(f"{bucket}/object", use_listings_cache=False)
    fs.pipe_file(path, b"first", mode="create")
    with pytest.raises(OSError):
        fs.pipe_file(path, b"second", mode="create")
    seaweed.kill()
    seaweed.start()
    assert fs.cat_file(path) == b"first"


def test_faults_are_seen_and_counted(bucket, faulty):
    fs, path = fsspec.core.url_to_fs(f"{bucket}/object", use_listings_cache=False)
    body = bytes(range(256)) * 1000
    fs.pipe_file(path, body)
    faulty.fault_share, faulty.faults, faulty.latency_s = 0.5, ("500", "503", "reset", "lost", "short"), 0.02
    began = time.monotonic()
    assert all(fs.cat_file(path) == body for _ in range(10))
    assert time.monotonic() - began > 10 * 0.02
    assert sum(faulty.injected.values()) > 3 and faulty.requests["GET"] > 10
