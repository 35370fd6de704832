"""Storage: what a URL names, a local folder or a remote place, opened as objects, and what that place can do.

Builders rely on one promise of a bucket: of many writers of an object one wins. Some servers take `If-None-Match: *`
and ignore it, so a probe tries it. What a probe leaves where nobody may delete is in `kd/probes/`.
"""

import logging
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kdcache.cache.errors import KDCacheError
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.objects import Objects
from kdcache.cache.storage.patience import refusal_code
from kdcache.cache.storage.remote import RemoteObjects
from kdcache.cache.storage.s3 import S3Objects
from kdcache.cache.storage.urls import join_url, require_no_credentials
from kdcache.cache.storage.writers import writer_name

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


logger = logging.getLogger(__name__)

PROBES = "kd/probes"
_WRITERS = 4


def probe_creation(objects: Objects) -> bool:
    """Prove by concurrent puts that objects are created once; else `objects` will not rely on it.

    Seventeen small requests at most; none where the answer is known. Puts alone are tried, for nothing is put in parts.

    Raises:
        KDCacheError: nothing can be written there.
    """
    if isinstance(objects, RemoteObjects) and objects.creates_once:
        objects.creates_once = _one_wins(objects)
    return objects.creates_once


def _one_wins(objects: RemoteObjects) -> bool:
    path = f"{PROBES}/{writer_name()}-{secrets.token_hex(4)}"
    bodies = [f"{path} {n}".encode() for n in range(_WRITERS)]
    try:
        with ThreadPoolExecutor(_WRITERS) as pool:
            won = list(pool.map(lambda body: objects.put_new(path, body), bodies))
        late = objects.put_new(path, b"too late")
        return won.count(True) == 1 and not late and objects.get(path) == bodies[won.index(True)]
    except KDCacheError as error:
        if error.__cause__ and refusal_code(error.__cause__) == "NotImplemented":
            return False
        raise
    finally:
        try:
            objects.remove(path)
        except KDCacheError as error:
            logger.warning("%s; anybody may delete it", error)
