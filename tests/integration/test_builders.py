"""Many builders of one store on S3: a probe, leases, retries, and messages about what is missing."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
import s3fs
from building import OPTIONS, begin, build, shards_of
from faultproxy import FAULTS
from seaweed import ignore_conditions

from kdcache.cache.build.build import build_store
from kdcache.cache.build.leases import LEASES, lease_path
from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.opening import PROBES, open_objects, probe_creation
from kdcache.cache.storage.retries import RetryPolicy
from kdcache.cache.store.opening import open_store
from kdcache.cache.upkeep.verify import verify_store

# The garbage collector closes connections that a fault left half-open, with a warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

FAULTY_SHARE = 0.2


def bytes_at(url: str, names: list[str]) -> dict[str, bytes]:
    objects = open_objects(url)
    return {name: objects.get(name) for name in names}


def assert_same_store(url: str, folder: Path) -> None:
    """Check that `url` has every object of the local store, except commit records, which name machines."""
    expected = shards_of(folder)
    assert bytes_at(url, list(expected)) == expected
    assert open_store(url).is_complete


@pytest.mark.parametrize("ignored", [False, True], ids=["honoured", "ignored"])
def test_a_probe_tells_servers_apart_and_leaves_nothing(bucket, monkeypatch, ignored):
    if ignored:
        ignore_conditions(monkeypatch)
    objects = open_objects(bucket)
    assert probe_creation(objects) == (not ignored)
    assert objects.creates_once == (not ignored)
    assert objects.names(PROBES) == []


def test_where_conditions_are_ignored_units_are_split_by_rank(bucket, monkeypatch, tmp_path):
    build(tmp_path / "one", passes=2)
    ignore_conditions(monkeypatch)
    barrier, said, leases = Barrier(2), [], []

    class Process:
        num_processes = 2

        def __init__(self, rank):
            self.process_index = rank

        def wait_for_everyone(self):
            barrier.wait(timeout=60)

    def build_share(rank):
        store, images, teacher = begin(bucket)
        return build_store(
            store,
            images,
            teacher,
            passes=2,
            options=OPTIONS,
            state=Process(rank),
            report=lambda line: said.append((rank, line)),
            progress=lambda done, total, note: leases.extend(store.objects.names(LEASES)),
        )

    begin(bucket)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(build_share, range(2)))
    assert [result.units_built for result in results] == [3, 3]
    assert sum("the 2 processes of this job split the units" in line for rank, line in said if rank == 0) == 1
    assert leases == []
    assert_same_store(bucket, tmp_path / "one")


def test_builders_that_know_nothing_of_each_other_build_one_store(bucket, tmp_path):
    build(tmp_path / "one", passes=3, unit_entries=2)
    store, images, teacher = begin(bucket, unit_entries=2)
    build_store(store, images, teacher, passes=1, options=OPTIONS)

    def join(_):
        return build(bucket, passes=3, unit_entries=2)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(join, range(3)))
    assert sum(result.units_built for result in results) == 10
    assert_same_store(bucket, tmp_path / "one")
    assert [open_objects(bucket).names(f"{LEASES}/{index:03d}") for index in range(3)] == [[], [], []]


def test_a_builder_waits_for_the_unit_of_another_and_takes_it_when_that_dies(bucket, tmp_path):
    build(tmp_path / "one")
    store, images, teacher = begin(bucket)
    lease = b'{"beats":0,"builder":"b","host":"elsewhere","process":1}'
    store.objects.put_new(lease_path(0, 1, 0), lease)
    notes = []
    build_store(
        store,
        images,
        teacher,
        passes=1,
        options=replace(OPTIONS, heartbeat_s=0.05),
        progress=lambda done, total, note: notes.append(note),
    )
    assert "waiting for 1 unit of other builders" in notes
    assert_same_store(bucket, tmp_path / "one")


@pytest.mark.slow
def test_a_build_on_a_server_that_fails_ends_in_the_same_bytes(faulty, impatient, bucket, tmp_path):
    build(tmp_path / "one", unit_entries=2)
    faulty.fail(FAULTY_SHARE, seed=2)
    build(bucket, unit_entries=2)
    assert set(faulty.injected) == set(FAULTS)
    faulty.fail(0.0)
    assert_same_store(bucket, tmp_path / "one")


@pytest.mark.parametrize("denied", [".", pytest.param("/c/", marks=pytest.mark.slow)], ids=["all", "shards"])
def test_credentials_that_expire_in_a_build_end_it_with_what_was_committed_intact(
    faulty, bucket, tmp_path, denied
):
    build(tmp_path / "one", passes=3)
    store, images, teacher = begin(bucket)

    def expire(done, total, note):
        if not faulty.denied and len(store.committed_units(0)) >= 2:
            faulty.denied = denied

    with pytest.raises(KDCacheError, match=r"cannot (read|write) s3://") as caught:
        build_store(store, images, teacher, passes=3, options=OPTIONS, progress=expire)
    assert caught.value.exit_code == 1 and "AWS_SESSION_TOKEN" in caught.value.hint
    faulty.denied = ""
    committed = sum(len(open_store(bucket).committed_units(index)) for index in range(3))
    assert 2 <= committed < 9
    assert verify_store(bucket, deep=True).is_clean
    quick = replace(OPTIONS, heartbeat_s=0.05)  # leases that their builder failed to remove are taken over
    assert build(bucket, passes=3, options=quick).units_before == committed
    assert_same_store(bucket, tmp_path / "one")


def test_credentials_that_are_wrong_end_a_build_that_goes_on_with_the_right_ones(
    bucket, tmp_path, monkeypatch
):
    build(bucket, passes=1)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(KDCacheError, match="cannot read s3://") as caught:
            build(bucket, passes=2)
        assert caught.value.exit_code == 1 and "AWS_PROFILE" in caught.value.hint
        assert "wrong-secret" not in str(caught.value)
    s3fs.S3FileSystem.clear_instance_cache()
    build(tmp_path / "one", passes=2)
    assert build(bucket, passes=2).units_before == 3
    assert_same_store(bucket, tmp_path / "one")


def test_a_server_that_is_not_there_is_one_clear_error_soon(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(
        "kdcache.cache.storage.remote.RemoteObjects.retry_policy", RetryPolicy(first_s=0.2, later_s=600.0)
    )
    with pytest.raises(KDCacheError, match=r"cannot read s3://\S+: .*127.0.0.1:9"):
        open_store(bucket)


def test_info_watches_until_the_store_is_complete(tmp_path, kdcache, monkeypatch):
    url = str(tmp_path / "store")
    build(url, passes=1)
    store, _, _ = begin(url)
    store.raise_goal(2)
    store.objects.put_new(lease_path(1, 2, 0), b'{"beats":0,"builder":"b","host":"gpu-7","process":41}')
    quick = replace(OPTIONS, heartbeat_s=0.05)  # the lease is taken over while the command sleeps
    clock = SimpleNamespace(sleep=lambda seconds: build(url, passes=2, options=quick))
    monkeypatch.setattr("kdcache.cli.info.time", clock)
    code, out, _ = kdcache("info", url, "--watch", "--json")
    looks = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [look["units"] for look in looks] == [[3, 6], [6, 6]]
    assert [look["complete"] for look in looks] == [False, True]
    (lease,) = looks[0]["leases"]
    assert (lease["host"], lease["process"], lease["pass"], lease["unit"]) == ("gpu-7", 41, 1, 2)
    code, out, _ = kdcache("info", url, "--watch")
    assert code == 0 and "6 of 6" in out
