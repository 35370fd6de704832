"""Shards fetched ahead: those of the entries that come next go into the host's cache before a batch asks for them.

    batch being read -> entries within two shuffle pools' length behind it -> their shards, in order -> threads that fetch

Every process of a host does this for its own share of the batches. What another is fetching already is left to it, so
together they fetch each shard once. Errors are left to whoever needs the entry: it tries again, and says what is wrong.
"""

import logging
from concurrent.futures import ThreadPoolExecutor

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.shard_cache import CachedShards
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.targets import StoredViews

FETCHES = 8  # at once; each holds one shard in memory

# The first batch of a pool takes from most of its units. Were only the next pool fetched while one is read, all would wait
# at each pool's end.
POOLS_AHEAD = 2

logger = logging.getLogger(__name__)


class Ahead:
    """Fetches what batches [s B + rank b, s B + (rank + 1) b) read, b = B / processes, for steps s as they come."""

    def __init__(
        self,
        views: StoredViews,
        shards: CachedShards,
        *,
        batch_size: int,
        rank: int = 0,
        processes: int = 1,
        fetches: int = FETCHES,
    ) -> None:
        self._views, self._shards = views, shards
        self._batch_size, self._share = batch_size, batch_size // processes
        self._first = rank * self._share
        self._steps_ahead = _steps_ahead(views.order, batch_size)
        self._planned_to = 0  # the first step that is not planned
        self._planned: set[tuple[int, int]] = set()  # (epoch, unit), of this epoch and the one before
        self._epoch = 0
        self._threads = ThreadPoolExecutor(fetches, thread_name_prefix="ahead")

    def advance(self, step: int) -> None:
        """Batch `step` is about to be read: plan it and what comes behind it."""
        until = step + self._steps_ahead + 1
        for planned in range(max(step, self._planned_to), until):
            start = planned * self._batch_size + self._first
            for t in range(start, start + self._share):
                self._plan(t)
        self._planned_to = until

    def close(self) -> None:
        """Fetches that have begun go on to their end, others are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _plan(self, t: int) -> None:
        epoch = t // self._views.order.n_images
        pass_index, position = self._views.order.entry(t)
        unit = position // self._views.order.unit_entries
        if (epoch, unit) in self._planned:
            return
        if epoch != self._epoch:
            self._epoch = epoch
            self._planned = {(wanted, unit) for wanted, unit in self._planned if wanted >= epoch - 1}
        self._planned.add((epoch, unit))
        for path in self._views.reader.shards(pass_index, unit):
            self._threads.submit(self._fetch, path)

    def _fetch(self, path: str) -> None:
        try:
            self._shards.fetch(path, wait=False)
        except KDCacheError as error:
            logger.debug("not fetched ahead: %s", error)


def bytes_at_once(order: EntryOrder, batch_size: int, unit_bytes: int) -> int:
    """What the cache must hold so that nothing is fetched twice: the shuffle pool, and what is fetched ahead of it.

    The window of `Ahead` touches one pool more than its length holds. One more is done with, but was used after those
    that were fetched for later: the cache evicts by last use.
    """
    pool_entries = order.pool_units * order.unit_entries
    window = (_steps_ahead(order, batch_size) + 1) * batch_size
    units = -(-order.n_images // order.unit_entries) * len(order.passes)
    return unit_bytes * min(units, order.pool_units * (-(-window // pool_entries) + 2))


def _steps_ahead(order: EntryOrder, batch_size: int) -> int:
    """Batches of the length of the pools ahead."""
    return -(-POOLS_AHEAD * order.pool_units * order.unit_entries // batch_size)
