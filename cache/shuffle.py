"""Random words and permutations that depend on their name alone: the same on every machine, with every version of numpy.

numpy keeps the raw stream of a bit generator stable, but not what its Generator methods make of it; so only raw words
are used.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_PERSON = b"kdcache.order.1"  # change it with anything that changes an order


def random_words(name: str, n: int) -> NDArray[np.uint64]:
    """`n` random words of a named stream, shape (n,)."""
    key = hashlib.blake2b(name.encode(), digest_size=16, person=_PERSON).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(n)


def permutation(name: str, n: int) -> NDArray[np.int64]:
    """A named permutation of range(n), shape (n,)."""
    return np.argsort(random_words(name, n), kind="stable")
