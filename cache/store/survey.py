"""Survey: how complete a store is and how large, with few requests.

The manifest of a complete pass says everything about it. So only incomplete passes have their commits listed, and
arrays are never listed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kdcache.cache.store.ledger import Commit
from kdcache.cache.store.spec import VIEWS
from kdcache.cache.store.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """The state of a store at one moment."""

    goal: int  # number of passes asked for
    units: Mapping[int, int]  # committed units, by pass; only passes that have some
    goal_units: int
    complete_passes: tuple[int, ...]
    partial: Mapping[
        int, tuple[str, ...]
    ]  # passes that a copy brought without all arrays: the arrays that are here
    bytes_by_array: Mapping[str, int]  # of complete passes, if the array is here
    passes_by_array: Mapping[str, int]  # how many passes these bytes are of
    last: Commit | None  # of the last unit of the last pass that has units

    @property
    def progress(self) -> float:
        """The fraction of the goal's units that is committed, from 0 to 1."""
        return min(1.0, sum(self.units.values()) / self.goal_units) if self.goal_units else 0.0


def survey(store: Store) -> Survey:
    """Survey a store by reading its ledger once."""
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
        here = partial.get(index, set(store.arrays))
        if manifest and VIEWS in here:
            complete.append(index)
            for name in here:
                sizes[name] += manifest.bytes_by_array[name]
                passes[name] += 1
    goal = store.goal
    return Survey(
        goal=goal,
        units=units,
        goal_units=goal * store.spec.units_per_pass,
        complete_passes=tuple(complete),
        partial={index: tuple(sorted(here)) for index, here in sorted(partial.items())},
        bytes_by_array={name: size for name, size in sizes.items() if passes[name]},
        passes_by_array={name: count for name, count in passes.items() if count},
        last=store.commit_of(*last) if last else None,
    )
