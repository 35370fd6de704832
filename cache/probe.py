"""A probe: whether a bucket keeps the promise on which builders rely, that of many writers of an object one wins.

Some servers take `If-None-Match: *` and ignore it. What is left behind, where nobody may delete, lies in `kd/probes/`.
"""

import logging
import secrets
from concurrent.futures import ThreadPoolExecutor

from kdcache.cache.errors import KDCacheError
from kdcache.cache.objects import Objects
from kdcache.cache.remoteobjects import RemoteObjects
from kdcache.cache.retries import refusal_code
from kdcache.cache.writers import writer_name

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
