"""Prefetching of shards: in reading order, each once, and not more than the cache was sized for."""

import time
from dataclasses import replace

import pytest

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.shard_cache import ShardCache
from kdcache.cache.store.reader import StoreReader
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.prefetch import ShardPrefetcher, working_set_bytes
from kdcache.distill.data.targets import StoredViews

BATCH = 4


@pytest.fixture
def views(stores, tmp_path, request) -> StoredViews:
    """A remote store of two passes of 50 entries, in units of 3, read in pools of 2 units."""
    store = stores["begin"](f"memory://{request.node.name}", stores["spec"](images=50))
    for index in (0, 1):
        stores["fill"](store, index)
    reader = StoreReader(store.url, ["logits"], cache=ShardCache(tmp_path / "cache", 10**8))
    return StoredViews(reader, EntryOrder(passes=(0, 1), n_images=50, unit_entries=3, pool_units=2, seed=0))


class Fetched:
    """In place of the cache: records the requests in order."""

    def __init__(self, error: Exception | None = None) -> None:
        self.paths: list[str] = []
        self.error = error

    def fetch(self, path: str, *, wait: bool) -> None:
        self.paths.append(path)
        if self.error is not None:
            raise self.error


def wanted(views: StoredViews, steps: range, rank: int = 0, processes: int = 1) -> list[str]:
    """Paths by first use in each epoch."""
    found: dict[tuple[int, str], None] = {}
    for step in steps:
        share = BATCH // processes
        for t in range(step * BATCH + rank * share, step * BATCH + (rank + 1) * share):
            pass_index, position = views.order.entry(t)
            for path in views.reader.shards(pass_index, position // 3):
                found[t // 50, path] = None
    return [path for _, path in found]


@pytest.mark.parametrize(("rank", "processes"), [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("start", [0, 9])
def test_what_comes_is_fetched_in_order_and_no_further_than_a_pool(views, rank, processes, start):
    fetched = Fetched()
    # One at a time, so that their order means something.
    prefetcher = ShardPrefetcher(
        views, fetched, batch_size=BATCH, rank=rank, processes=processes, parallel_fetches=1
    )
    for step in range(start, start + 40):
        prefetcher.advance(step)
        expected = wanted(views, range(start, step + 1 + 3), rank, processes)  # 12 entries are 3 batches
        while len(fetched.paths) < len(expected):
            time.sleep(0.001)
        assert fetched.paths == expected
    prefetcher.close()


def test_errors_are_left_to_the_reader(views):
    fetched = Fetched(KDCacheError("the network is down"))
    prefetcher = ShardPrefetcher(views, fetched, batch_size=BATCH, parallel_fetches=1)
    prefetcher.advance(0)
    prefetcher._threads.shutdown()
    assert fetched.paths == wanted(views, range(4))


def test_the_cache_needs_no_more_than_all_there_is():
    order = EntryOrder(passes=(0, 1), n_images=50, unit_entries=3, pool_units=2, seed=0)
    assert working_set_bytes(order, 1, 10) == 5 * 2 * 10
    assert working_set_bytes(order, 12, 10) == 6 * 2 * 10
    assert working_set_bytes(replace(order, pool_units=100), 4, 10) == 2 * 17 * 10
