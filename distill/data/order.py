"""The order of a run's data: a stream of entries over all epochs, with random access.

    t = 0, 1, 2, ...  ->  (pass, position),    a batch of B at step s is t in [s B, (s + 1) B)

All batches are full: an epoch may end inside a batch, and the next epoch starts there. The stream depends on the seed
alone, not on the number of processes, so resuming needs only the number of the step.

An epoch reads one pass. The units of the pass are shuffled, and the entries are shuffled within pools of consecutive
units: a reader streams whole units, and a batch still mixes the entries of many units. The passes follow a permutation;
when all have been read, a new one is drawn. When passes join a run, a new permutation of all passes starts there, with
the new passes first.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import UsageError
from kdcache.cache.shuffle import permutation, random_words


class Order(ABC):
    """A stream of entries. Cheap to pickle, because permutations are computed where they are needed."""

    @abstractmethod
    def entry(self, t: int) -> tuple[int, int]:
        """(pass or view index, position or image index) at `t` = 0, 1, 2, ..."""

    def batch_entries(
        self, step: int, batch_size: int, rank: int = 0, world: int = 1
    ) -> list[tuple[int, int]]:
        """The entries of process `rank` of `world` at a step: its slice of the batch of all processes."""
        start = step * batch_size
        return [
            self.entry(start + i) for i in range(rank * batch_size // world, (rank + 1) * batch_size // world)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class EntryOrder(Order):
    """The order of a store's entries: (pass index, position in the pass).

    Raises:
        UsageError: no pass, a pass twice, no image, or a size below 1.
    """

    passes: tuple[int, ...]  # those that the run started with, in any order
    n_images: int  # entries a pass
    unit_entries: int  # the last unit of a pass may have fewer
    pool_units: int  # units that entries are shuffled across: a reader keeps them in memory or in the cache
    seed: int
    joined: tuple[tuple[int, tuple[int, ...]], ...] = ()  # (first epoch, passes that joined), in order

    def __post_init__(self) -> None:
        if not self.passes or len(set(self.passes)) < len(self.passes):
            raise UsageError(
                f"the order of entries needs at least one pass, each only once; got {list(self.passes)}"
            )
        for name in ("n_images", "unit_entries", "pool_units"):
            _check_positive(name, getattr(self, name))

    def entry(self, t: int) -> tuple[int, int]:
        """(pass index, position) at `t`. Fast, except for the first entry of an epoch, which draws a permutation."""
        assert t >= 0
        epoch, offset = divmod(t, self.n_images)
        positions = _epoch_positions(self.seed, epoch, self.n_images, self.unit_entries, self.pool_units)
        return self.pass_index(epoch), int(positions[offset])

    def epochs_begun_by(self, step: int, batch_size: int) -> range:
        """The epochs whose first entry is in the batch of a step; empty for most steps."""
        return range(-(-step * batch_size // self.n_images), -(-(step + 1) * batch_size // self.n_images))

    def pass_index(self, epoch: int) -> int:
        """The pass that an epoch reads."""
        start, passes, new = 0, self.passes, self.passes
        for first, joining in self.joined:
            if first <= epoch:
                start, passes, new = first, (*passes, *joining), joining
        cycle, turn = divmod(epoch - start, len(passes))
        # The names seed the order: another spelling would change the data of resumed runs.
        name = f"{start}+{cycle}" if start else str(cycle)
        turns = [sorted(passes)[place] for place in _cycle_turns(self.seed, name, len(passes))]
        if cycle == 0:
            turns.sort(key=lambda index: index not in new)  # a stable sort: new passes first
        return turns[turn]


@dataclass(frozen=True, kw_only=True, slots=True)
class FreshOrder(Order):
    """The order of fresh views: epoch k uses view k of all images, without end."""

    n_images: int
    seed: int

    def __post_init__(self) -> None:
        _check_positive("n_images", self.n_images)

    def entry(self, t: int) -> tuple[int, int]:
        """(view index, image index) at `t`."""
        assert t >= 0
        epoch, offset = divmod(t, self.n_images)
        return epoch, int(_epoch_positions(self.seed, epoch, self.n_images, self.n_images, 1)[offset])


@lru_cache(maxsize=4)  # more than one, because a batch may span two epochs and the prefetcher is ahead
def _epoch_positions(
    seed: int, epoch: int, n_images: int, unit_entries: int, pool_units: int
) -> NDArray[np.int64]:  # (n_images,)
    """Every position once, sorted by (pool of its unit, random word)."""
    position = np.arange(n_images)
    unit = position // unit_entries
    units = int(unit[-1]) + 1
    turn = np.empty(units, np.int64)  # of each unit: its place in the shuffled order of units
    # Not NumPy's own permutations, which may change between versions: a resumed run must read the same order.
    turn[permutation(f"{seed} units {epoch}", units)] = np.arange(units)
    return np.lexsort((random_words(f"{seed} entries {epoch}", n_images), turn[unit] // pool_units))


@lru_cache(maxsize=4)
def _cycle_turns(seed: int, cycle: str, n_passes: int) -> list[int]:
    turns: list[int] = permutation(f"{seed} passes {cycle}", n_passes).tolist()
    return turns


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UsageError(f"the order of entries: {name} must be at least 1, got {value}")
