"""Random words and permutations that depend only on a name: equal on every machine and with every version of numpy.

numpy keeps the raw stream of a bit generator stable, but may change what its Generator methods make of it. So only raw
words are used here.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

# Raise the number with any change of an order: a resumed run would mix two orders
_PERSON = b"kdcache.order.1"


def random_words(name: str, n: int) -> NDArray[np.uint64]:
    """`n` random words of the stream called `name`, shape (n,)."""
    key = hashlib.blake2b(name.encode(), digest_size=16, person=_PERSON).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(n)


def permutation(name: str, n: int) -> NDArray[np.int64]:
    """The permutation of range(n) called `name`, shape (n,)."""
    # Stable, so that two equal words, however unlikely, give one order on every platform.
    return np.argsort(random_words(name, n), kind="stable")
