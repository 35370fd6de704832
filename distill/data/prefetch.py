"""Fetches shards of a remote store into the host's cache before a batch needs them.

    batch that a worker starts -> the entries of the next two shuffle pools -> their shards, in order -> threads that fetch

Every process of a host does this for its own part of the batches. Together they fetch each shard once, because a process
skips shards that another one is fetching.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.shard_cache import CachedShards
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.targets import StoredViews

PARALLEL_FETCHES = 8  # each keeps one shard in memory

# Two, because the first batch of a pool needs most of its units: with one pool ahead, reading would pause at every pool.
POOLS_AHEAD = 2

logger = logging.getLogger(__name__)


class ShardPrefetcher:
    """Fetches the shards of the entries [s B + rank b, s B + (rank + 1) b), b = B / processes, for the coming steps s.

    Args:
        batch_size: B, crops of all processes together.
        parallel_fetches: threads, each fetching one shard at a time.
    """

    def __init__(
        self,
        views: StoredViews,
        shards: CachedShards,
        *,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        parallel_fetches: int = PARALLEL_FETCHES,
    ) -> None:
        self._views, self._shards = views, shards
        self._batch_size, self._share = batch_size, batch_size // processes
        self._first = rank * self._share
        self._steps_ahead = _steps_ahead(views.order, batch_size)
        self._planned_to = 0  # the first step that is not planned yet
        self._planned: set[tuple[int, int]] = set()  # (epoch, unit), of this epoch and the previous one
        self._epoch = 0
        self._threads = ThreadPoolExecutor(parallel_fetches, thread_name_prefix="ahead")

    def advance(self, step: int) -> None:
        """Start fetches for the batch of `step`, which a worker is about to read, and for the following ones."""
        until = step + self._steps_ahead + 1
        for planned in range(max(step, self._planned_to), until):
            start = planned * self._batch_size + self._first
            for t in range(start, start + self._share):
                self._plan(t)
        self._planned_to = until

    def close(self) -> None:
        """Drop the fetches that have not started. Those that have run to their end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _plan(self, t: int) -> None:
        epoch = t // self._views.order.n_images
        pass_index, position = self._views.order.entry(t)
        unit = position // self._views.order.unit_entries
        if (epoch, unit) in self._planned:
            return
        if epoch != self._epoch:
            self._epoch = epoch
            # Keep the previous epoch: a batch may span two, and forgetting it would fetch its units again.
            self._planned = {(wanted, unit) for wanted, unit in self._planned if wanted >= epoch - 1}
        self._planned.add((epoch, unit))
        for path in self._views.reader.shards(pass_index, unit):
            self._threads.submit(self._fetch, path)

    def _fetch(self, path: str) -> None:
        try:
            self._shards.fetch(path, wait=False)
        except KDCacheError as error:
            # Not an error yet: the reader fetches the shard itself, and reports what is wrong.
            logger.debug("not fetched ahead: %s", error)


def working_set_bytes(order: EntryOrder, batch_size: int, unit_bytes: int) -> int:
    """Bytes that the cache needs so that no shard is fetched twice: the pool that is read, and those fetched ahead."""
    pool_entries = order.pool_units * order.unit_entries
    window = (_steps_ahead(order, batch_size) + 1) * batch_size
    units = -(-order.n_images // order.unit_entries) * len(order.passes)
    # Two pools more than fit the window's length. It may start and end inside a pool. And the pool before it is evicted
    # too late: the cache evicts what was used longest ago, and that pool was used after the fetches for later.
    return unit_bytes * min(units, order.pool_units * (-(-window // pool_entries) + 2))


def _steps_ahead(order: EntryOrder, batch_size: int) -> int:
    """The number of batches in POOLS_AHEAD pools, rounded up."""
    return -(-POOLS_AHEAD * order.pool_units * order.unit_entries // batch_size)
