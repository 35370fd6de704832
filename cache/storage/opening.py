"""Storage: a URL (a local folder or a remote place) opened as objects, and a probe of what that place guarantees.

Builders rely on one guarantee of a bucket: of many writers of one object exactly one wins. Some servers accept
`If-None-Match: *` and ignore it, so a probe tries it out. If the probe may not delete its object, it stays in
`kd/probes/`.
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
from kdcache.cache.storage.remote import RemoteObjects
from kdcache.cache.storage.retries import refusal_code
from kdcache.cache.storage.s3 import S3Objects
from kdcache.cache.storage.urls import join_url, require_no_credentials
from kdcache.cache.storage.writers import writer_name

PROBE_PREFIX = ".kdcache-probe-"  # of the folders that `open_probe` makes


def open_objects(url: str) -> Objects:
    """The objects under a local folder, a file:// URL or any URL that fsspec supports.

    Raises UsageError for a URL that contains credentials, or an unknown scheme.
    """
    require_no_credentials(url)
    for scheme in ("file://", "local://"):
        url = url.removeprefix(scheme)
    if url.startswith(("s3:", "s3a:")):
        return S3Objects(url)
    return RemoteObjects(url) if "://" in url else LocalObjects(Path(url))


@contextmanager
def open_probe(url: str) -> Iterator[Objects]:
    """A new, empty prefix under `url`, deleted afterwards with everything in it.

    If a local `url` does not exist yet, the prefix is in its nearest parent folder that does. That is on the same disk,
    and no new folder stays behind.
    """
    home = open_objects(url)
    place = str(home.nearest_folder()) if isinstance(home, LocalObjects) else url
    objects = open_objects(join_url(place, f"{PROBE_PREFIX}{writer_name()}"))
    try:
        yield objects
    finally:
        try:
            objects.remove_all()
        except KDCacheError as error:  # some buckets forbid deleting; the measurement is still good
            logger.warning("%s; please delete it yourself", error)


def storage_time_s(url: str) -> float:
    """Seconds since 1970 by the clock of the storage at `url`: the age of objects must not depend on this host's clock.

    Writes one object and removes it.
    """
    with open_probe(url) as objects:
        objects.put_new("now", b"now")
        return objects.walk("")[0].modified_s


logger = logging.getLogger(__name__)

PROBES = "kd/probes"
_WRITERS = 4


def probe_creation(objects: Objects) -> bool:
    """Test with concurrent puts that objects are created only once; if not, `objects` stops relying on it.

    Sends at most 17 small requests, and none to storage whose answer is known. Only simple puts are tested, because
    nothing here is uploaded in parts.

    Raises:
        KDCacheError: writing is impossible there.
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
        # A server that does not know the header at all refuses the put: one builder at a time then.
        if error.__cause__ and refusal_code(error.__cause__) == "NotImplemented":
            return False
        raise
    finally:
        try:
            objects.remove(path)
        except KDCacheError as error:
            logger.warning("%s; you can delete it at any time", error)
