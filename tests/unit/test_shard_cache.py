"""The shard cache: complete and correct objects, fetched once, within its limit, also when processes die."""

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from training import note_shard_gets

from kdcache.cache.errors import KDCacheError, StoreDamagedError
from kdcache.cache.storage import host_cache
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.storage.shard_cache import ShardCache
from kdcache.cache.store.reader import StoreReader, requests_of_a_pass

SIZE = 1000


class Remote:
    """Objects named by number, of SIZE bytes each, with a count of the requests for each."""

    url = "fake://store"

    def __init__(self, *, wait_s: float = 0.0) -> None:
        self.gets: list[str] = []
        self.wait_s = wait_s
        self.answers: dict[str, bytes] = {}

    def read_range(self, path: str, start: int, length: int) -> bytes:
        self.gets.append(path)
        time.sleep(self.wait_s)
        if path == "gone":
            raise FileNotFoundError(path)
        return self.answers.get(path, content(path))[start : start + length]


def content(path: str) -> bytes:
    return path.encode().ljust(SIZE, b".")


def record(path: str) -> ObjectRecord:
    return ObjectRecord.of(content(path))


def stands(cache: ShardCache, path: str) -> bool:
    return (cache.folder / cache.relative_path(record(path).sha256)).exists()


def used(cache: ShardCache) -> int:
    """The number of bytes that the cache has booked."""
    return int((cache.folder / "used").read_text())


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", limit_bytes=10 * SIZE)


def test_an_object_is_fetched_once_and_then_stands_by_its_digest(cache):
    remote = Remote()
    for _ in range(3):
        cache.fetch(remote, "a", record("a"))
    assert remote.gets == ["a"]
    assert (cache.folder / cache.relative_path(record("a").sha256)).read_bytes() == content("a")
    assert used(cache) == SIZE and not os.listdir(cache.folder / "partial")


@pytest.mark.parametrize("answer", [b"", content("a")[:-1], content("b"), content("a") + b"."])
def test_wrong_bytes_are_fetched_again_once_and_then_named(cache, answer):
    remote = Remote()
    remote.answers["a"] = answer
    with pytest.raises(StoreDamagedError, match="fake://store/a is not what the ledger records"):
        cache.fetch(remote, "a", record("a"))
    assert remote.gets == ["a", "a"] and not stands(cache, "a")
    assert used(cache) == 0
    del remote.answers["a"]
    cache.fetch(remote, "a", record("a"))
    assert stands(cache, "a")


def test_a_missing_object_is_named(cache):
    with pytest.raises(StoreDamagedError, match="fake://store/gone is missing"):
        cache.fetch(Remote(), "gone", record("gone"))


def test_a_file_that_was_cut_off_is_fetched_again(cache):
    remote = Remote()
    cache.fetch(remote, "a", record("a"))
    os.truncate(cache.folder / cache.relative_path(record("a").sha256), 10)
    cache.fetch(remote, "a", record("a"))
    assert remote.gets == ["a", "a"]
    assert (cache.folder / cache.relative_path(record("a").sha256)).read_bytes() == content("a")


def test_the_least_recently_used_go(cache):
    remote = Remote()
    names = [str(n) for n in range(10)]
    for name in names:
        cache.fetch(remote, name, record(name))
    cache.fetch(remote, "0", record("0"))  # used again
    cache.fetch(remote, "new", record("new"))
    left = [name for name in names if stands(cache, name)]
    assert "0" in left and stands(cache, "new")
    assert left[1:] == names[-len(left) + 1 :] and 6 <= len(left) < 10
    total = sum(path.stat().st_size for path in (cache.folder / "objects").rglob("*") if path.is_file())
    assert total <= cache.limit_bytes and used(cache) == total


def test_what_can_be_held_at_once_is(cache):
    """A working set that just fits stays cached, however often it is read."""
    remote = Remote()
    n = cache.usable_bytes // SIZE
    assert ShardCache(cache.folder, cache.limit_for(n * SIZE)).usable_bytes >= n * SIZE
    for _ in range(3):
        for name in map(str, range(n)):
            cache.fetch(remote, name, record(name))
    assert len(remote.gets) == n == 9


def test_threads_and_a_second_cache_on_the_folder_fetch_each_object_once(cache):
    remote, other = Remote(wait_s=0.01), ShardCache(cache.folder, cache.limit_bytes)
    names = [str(n) for n in range(5)] * 8
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: cache.fetch(remote, name, record(name)), names))
        list(threads.map(lambda name: other.fetch(remote, name, record(name)), names))
    assert sorted(remote.gets) == sorted(set(names))


def test_without_waiting_what_another_fetches_is_left_to_it(cache):
    remote = Remote(wait_s=0.5)
    holder = threading.Thread(target=cache.fetch, args=(remote, "a", record("a")))
    holder.start()
    while not remote.gets:
        time.sleep(0.001)
    cache.fetch(remote, "a", record("a"), wait=False)
    assert not stands(cache, "a")
    holder.join()
    assert stands(cache, "a") and remote.gets == ["a"]


HANGS = """
import sys, time
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.storage.shard_cache import ShardCache
from pathlib import Path

class Hanging:
    url = "fake://store"

    def read_range(self, path, start, length):
        print("fetching", flush=True)
        time.sleep(600)

folder, limit, size, digest = sys.argv[1:]
ShardCache(Path(folder), int(limit)).fetch(Hanging(), "a", ObjectRecord(int(size), digest))
"""


def test_a_killed_process_leaves_nothing_that_lasts(cache):
    command = [sys.executable, "-c", HANGS, str(cache.folder), str(10 * SIZE), str(SIZE), record("a").sha256]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"fetching\n"
        process.kill()
    assert os.listdir(cache.folder / "partial") and used(cache) == SIZE
    remote = Remote()
    for name in ("b", *map(str, range(9))):  # evicting removes unneeded files
        cache.fetch(remote, name, record(name))
    assert not os.listdir(cache.folder / "partial")
    cache.fetch(remote, "a", record("a"))
    assert stands(cache, "a")


@pytest.mark.parametrize("words", ["", "many words, and longer than any number of bytes"])
def test_an_account_that_is_lost_is_made_anew(cache, words):
    remote = Remote()
    for name in "abc":
        cache.fetch(remote, name, record(name))
    (cache.folder / "used").write_text(words)
    cache.fetch(remote, "d", record("d"))
    assert used(cache) == 4 * SIZE


def test_a_full_disk_costs_old_objects_first_and_is_then_one_clear_error(cache, monkeypatch):
    remote = Remote()
    for name in "abc":
        cache.fetch(remote, name, record(name))

    def free(folder):
        held = sum(path.stat().st_size for path in (cache.folder / "objects").rglob("*") if path.is_file())
        return shutil_usage(folder)._replace(free=3 * SIZE + SIZE // 2 - held)

    shutil_usage = host_cache.shutil.disk_usage
    monkeypatch.setattr(host_cache.shutil, "disk_usage", free)
    cache.fetch(remote, "d", record("d"))
    assert stands(cache, "d") and not stands(cache, "a")
    monkeypatch.setattr(host_cache.shutil, "disk_usage", lambda folder: shutil_usage(folder)._replace(free=5))
    with pytest.raises(KDCacheError, match="has no space for 1000 bytes") as caught:
        cache.fetch(remote, "e", record("e"))
    assert "free some disk space" in caught.value.hint
    monkeypatch.setattr(host_cache.shutil, "disk_usage", shutil_usage)
    cache.fetch(remote, "e", record("e"))

    def refuse(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(host_cache.os, "replace", refuse)
    with pytest.raises(KDCacheError, match="No space left on device") as caught:
        cache.fetch(remote, "f", record("f"))
    assert caught.value.hint == "free some disk space" and not os.listdir(cache.folder / "partial")


@pytest.fixture
def remote_store(stores, spec, request):
    store = stores["begin"](f"memory://{request.node.name}", spec)
    store.raise_goal(1)
    stores["fill"](store, 0)
    return store


def codes_of(reader: StoreReader) -> list[bytes]:
    return [reader.entry(0, position).codes["logits"].tobytes() for position in range(7)]


def test_a_reader_fetches_whole_shards_of_what_it_needs_once(remote_store, cache, monkeypatch):
    clean = codes_of(StoreReader(remote_store.url, ["logits"]))
    cache = ShardCache(cache.folder, 10**6)
    gets = note_shard_gets(monkeypatch)
    reader = StoreReader(remote_store.url, ["logits"], cache=cache)
    assert codes_of(reader) == clean and np.array_equal(reader.rows(0), reader.rows(0))
    assert sorted(gets) == sorted(path for unit in range(3) for path in reader.shards(0, unit))
    assert len(gets) == requests_of_a_pass(remote_store.spec, ["logits"])
    copy = pickle.loads(pickle.dumps(reader))
    assert codes_of(copy) == clean and len(gets) == 6


@pytest.mark.parametrize("array", ["views", "logits"])
def test_a_bit_that_flips_in_the_store_is_found_and_one_in_the_cache_is_mended(
    remote_store, cache, monkeypatch, array
):
    cache = ShardCache(cache.folder, 10**6)
    reader = StoreReader(remote_store.url, ["logits"], cache=cache)
    clean = codes_of(reader)
    path = next(path for path in reader.shards(0, 1) if array in path)
    kept = cache.folder / cache.relative_path(reader.cached.records[path].sha256)
    data = bytearray(kept.read_bytes())
    for place in range(0, len(data), max(1, len(data) // 16)):
        data[place] ^= 4
    kept.write_bytes(data)
    gets = note_shard_gets(monkeypatch)
    assert codes_of(StoreReader(remote_store.url, ["logits"], cache=cache)) == clean
    assert path in gets
    remote_store.objects.fs.pipe_file(remote_store.objects._full(path), bytes(data))
    kept.unlink()
    with pytest.raises(StoreDamagedError, match=f"{path} is not what the ledger records"):
        codes_of(StoreReader(remote_store.url, ["logits"], cache=cache))


def test_a_cache_that_others_empty_all_the_time_is_one_clear_error(remote_store, cache, monkeypatch):
    reader = StoreReader(remote_store.url, ["logits"], cache=ShardCache(cache.folder, 10**6))
    fetch = ShardCache.fetch

    def lost(self, objects, path, record, *, wait=True):
        fetch(self, objects, path, record, wait=wait)
        (self.folder / self.relative_path(record.sha256)).unlink()
        return True

    monkeypatch.setattr(ShardCache, "fetch", lost)
    with pytest.raises(KDCacheError, match="too small for all its users"):
        reader.entry(0, 0)


def test_a_store_on_this_host_needs_no_cache(store, cache):
    reader = StoreReader(store.url, ["logits"], cache=cache)
    reader.entry(0, 0)
    assert reader.cached is None and not cache.folder.exists()
