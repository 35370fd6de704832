"""A probe: whether a bucket keeps the promise on which builders rely, that of many writers of an object one wins.

Some servers take `If-None-Match: *` and ignore it. What is left behind, where nobody may delete, lies in `kd/probes/`.
"""

import logging
import os
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from kdcache.cache.errors import KDCacheError
from kdcache.cache.objects import Objects, RemoteObjects
from kdcache.cache.retries import refusal_code

logger = logging.getLogger(__name__)

PROBES = "kd/probes"
_WRITERS = 4


def probe_creation(objects: Objects) -> bool:
    """Prove by concurrent puts, whole and in parts, that objects are created once; else `objects` will not rely on it.

    33 small requests at most; none where the answer is known.

    Raises:
        KDCacheError: nothing can be written there.
    """
    if isinstance(objects, RemoteObjects) and objects.creates_once:
        objects.creates_once = _one_wins(objects)
    return objects.creates_once


def _one_wins(objects: RemoteObjects) -> bool:
    name = f"{PROBES}/{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    puts = {f"{name}-whole": objects.put_new, f"{name}-parts": objects.put_new_in_parts}
    try:
        return all(_race(objects, path, put) for path, put in puts.items())
    except KDCacheError as error:
        if error.__cause__ and refusal_code(error.__cause__) == "NotImplemented":
            return False
        raise
    finally:
        try:
            for path in puts:
                objects.remove(path)
        except KDCacheError as error:
            logger.warning("%s; `kdcache gc` or anybody may delete it", error)


def _race(objects: RemoteObjects, path: str, put: Callable[[str, bytes], bool]) -> bool:
    bodies = [f"{path} {n}".encode() for n in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        won = list(pool.map(lambda body: put(path, body), bodies))
    late = put(path, b"too late")
    return won.count(True) == 1 and not late and objects.get(path) == bodies[won.index(True)]
