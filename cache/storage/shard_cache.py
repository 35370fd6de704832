"""The shard cache: whole objects of remote stores on this host's disk, shared by all its processes and runs.

The key of an object is the sha256 that the ledger records, so an object of two stores is kept once. Size and sha256 are
compared when an object arrives; later only its size, because a reader checks every row by the row's own checksum.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from functools import partial

from kdcache.cache.errors import KDCacheError, StoreDamagedError
from kdcache.cache.storage.host_cache import HostCache, write_all
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.objects import ByteRange, ObjectRecord, Objects, sha256

_MAX_DOWNLOADS = 2  # of an object that arrives with wrong bytes: the first may have been damaged on the way
_RECHECK_S = (
    10.0  # an object that was found is looked for again; a look costs two calls, reading a small row three
)
_MAX_REFETCHES = 5  # times in a row that an object is evicted by others between its fetch and its read

logger = logging.getLogger(__name__)


class ShardCache(HostCache):
    """Shards in a host cache; their keys are their sha256."""

    __slots__ = ()

    def fetch(self, objects: Objects, path: str, record: ObjectRecord, *, wait: bool = True) -> bool:
        """Make sure the object is here, and mark it as used now. False if another process is still fetching it.

        Args:
            wait: for the other process to finish; if False, return at once.

        Raises:
            StoreDamagedError: it is missing, or arrived twice with other bytes than `record` says.
            KDCacheError: fetching failed, or the disk is full.
        """
        # Not synced, because a sync for every object is slow. After a power failure the rows' checksums find a file of
        # zeros, and it is fetched again.
        return self.add(record.sha256, record.size, partial(_download, objects, path, record), wait=wait)

    def forget(self, record: ObjectRecord) -> None:
        """Delete a shard whose bytes turned out to be wrong."""
        self.discard(record.sha256, record.size)


class CachedShards:
    """The shards of one store, read through the cache. A reader uses this in place of the store's objects."""

    def __init__(self, objects: Objects, cache: ShardCache) -> None:
        self.url = objects.url
        self.records: dict[str, ObjectRecord] = {}
        """What the ledger says about every shard that may be read, by path."""
        self._objects = objects
        self._cache = cache
        self._files = LocalObjects(cache.folder)
        self._seen_s: dict[str, float] = {}  # by path: when it was last found here

    def get(self, path: str) -> bytes:
        """The whole shard."""
        return self.read_ranges([ByteRange(path, 0, self.records[path].size)])[0]

    def read_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """As Objects.read_ranges; shards that are not here are fetched first. Raises as ShardCache.fetch."""
        paths = {each.path: self._cache.relative_path(self.records[each.path].sha256) for each in ranges}
        local = [ByteRange(paths[path], start, length) for path, start, length in ranges]
        for _ in range(_MAX_REFETCHES):
            for path in paths:
                self.fetch(path)
            try:
                return self._files.read_ranges(local)
            except FileNotFoundError:  # another process evicted it since `fetch` looked
                self._seen_s.clear()
        raise KDCacheError(
            f"the cache {self._cache.folder} is too small for all its users: objects are evicted before they are read",
            hint="raise --cache-limit, or give some of the users another KDCACHE_CACHE folder",
        )

    def fetch(self, path: str, *, wait: bool = True) -> None:
        """Make sure a shard is in the cache, see ShardCache.fetch. One that was found a moment ago is not looked for."""
        now = time.monotonic()
        if now - self._seen_s.get(path, -_RECHECK_S) < _RECHECK_S:
            return
        if self._cache.fetch(self._objects, path, self.records[path], wait=wait):
            self._seen_s[path] = now

    def discard(self, paths: Iterable[str]) -> None:
        """Delete these shards here, so that the next read fetches them again."""
        for path in paths:
            self._cache.forget(self.records[path])
        self._seen_s.clear()
        self._files = LocalObjects(self._cache.folder)  # the old one has the deleted files still open


def _download(objects: Objects, path: str, record: ObjectRecord, descriptor: int) -> None:
    """Write the object's bytes, compared with the ledger, to a file. Downloaded twice if they differ, in case of damage on the way."""
    for _ in range(_MAX_DOWNLOADS):
        try:
            # A range, because fsspec asks for the size before it reads a whole object: one request more. One byte more
            # than recorded shows an object that is too long.
            data = objects.read_range(path, 0, record.size + 1)
        except FileNotFoundError:
            raise StoreDamagedError(
                f"{objects.url}/{path} is missing",
                hint=f"`kdcache verify {objects.url} --repair` computes it again; or restore it from a copy",
            ) from None
        if len(data) == record.size and sha256(data) == record.sha256:
            write_all(descriptor, data)
            return
        logger.warning("%s/%s arrived with other bytes than the ledger records", objects.url, path)
    raise StoreDamagedError(
        f"{objects.url}/{path} is not what the ledger records: {len(data)} bytes with sha256 {sha256(data)[:12]}, "
        f"not {record.size} with {record.sha256[:12]}",
        hint=f"`kdcache verify {objects.url}` lists all damage, and with --repair repairs it; then run this command again",
    )
