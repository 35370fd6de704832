"""Storage: what a URL names, a local folder or a remote place, opened as objects."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcache.cache.errors import KDCacheError
from kdcache.cache.localobjects import LocalObjects
from kdcache.cache.objects import Objects
from kdcache.cache.remoteobjects import RemoteObjects
from kdcache.cache.s3objects import S3Objects
from kdcache.cache.urls import join_url, require_no_credentials
from kdcache.cache.writers import writer_name

logger = logging.getLogger(__name__)

PROBE_PREFIX = ".kdcache-probe-"  # of the folders of `open_probe`


def open_objects(url: str) -> Objects:
    """The objects under a local folder, a file:// URL or any URL that fsspec knows.

    Raises UsageError for a URL with credentials in it, or of an unknown scheme.
    """
    require_no_credentials(url)
    for scheme in ("file://", "local://"):
        url = url.removeprefix(scheme)
    if url.startswith(("s3:", "s3a:")):
        return S3Objects(url)
    return RemoteObjects(url) if "://" in url else LocalObjects(Path(url))


@contextmanager
def open_probe(url: str) -> Iterator[Objects]:
    """An empty prefix of its own under `url`, which goes with all that was put there.

    Where a local `url` does not exist yet it lies in the nearest folder that does, on the same disk: no folder stays.
    """
    home = open_objects(url)
    place = str(home.nearest_folder()) if isinstance(home, LocalObjects) else url
    objects = open_objects(join_url(place, f"{PROBE_PREFIX}{writer_name()}"))
    try:
        yield objects
    finally:
        try:
            objects.remove_all()
        except KDCacheError as error:  # some buckets let nobody delete; what was measured still holds
            logger.warning("%s; delete it by hand", error)


def storage_time_s(url: str) -> float:
    """The time since 1970 by the clock of the storage at `url`: an object's that is written there and removed."""
    with open_probe(url) as objects:
        objects.put_new("now", b"now")
        return objects.walk("")[0].modified_s
