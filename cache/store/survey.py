"""Survey: how far a store is and what it takes, with few requests.

A manifest says all of its pass, so only the passes that are not complete have their commits listed, and no array is.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.cache.store.ledger import Commit
from kdcache.cache.store.spec import VIEWS
from kdcache.cache.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """A store at one moment."""

    goal: int  # passes that are wanted
    units: Mapping[int, int]  # committed ones, by begun pass
    units_wanted: int
    complete_passes: tuple[int, ...]
    partial: Mapping[int, tuple[str, ...]]  # passes that a copy left arrays out of: those that are here
    bytes_by_array: Mapping[str, int]  # of complete passes, as far as they are here
    passes_by_array: Mapping[str, int]  # how many those are
    last: Commit | None  # of the last unit of the last begun pass

    @property
    def progress(self) -> float:
        """Committed units of those that are wanted, from 0 to 1."""
        return min(1.0, sum(self.units.values()) / self.units_wanted) if self.units_wanted else 0.0


def survey(store: Store) -> Survey:
    """Look at the ledger once."""
    partial = store.partial_passes()
    units: dict[int, int] = {}
    complete: list[int] = []
    sizes, passes = dict.fromkeys(store.arrays, 0), dict.fromkeys(store.arrays, 0)
    last: tuple[int, int, int] | None = None  # pass, unit, generation
    for index in store.begun_passes():
        manifest = store.manifest(index)
        generations = (
            {commit.unit: commit.generation for commit in manifest.commits}
            if manifest
            else store.generations(index)
        )
        units[index] = len(generations)
        if generations:
            last = (index, *max(generations.items()))
        held = partial.get(index, set(store.arrays))
        if manifest and VIEWS in held:
            complete.append(index)
            for name in held:
                sizes[name] += manifest.bytes_by_array[name]
                passes[name] += 1
    goal = store.goal
    return Survey(
        goal=goal,
        units=units,
        units_wanted=goal * store.spec.units_per_pass,
        complete_passes=tuple(complete),
        partial={index: tuple(sorted(held)) for index, held in sorted(partial.items())},
        bytes_by_array={name: size for name, size in sizes.items() if passes[name]},
        passes_by_array={name: count for name, count in passes.items() if count},
        last=store.commit_of(*last) if last else None,
    )
