"""Repair: what `verify` found damaged, made again and put in its place.

What follows from other objects is derived and rewritten. A damaged shard is made by the teacher from the dataset; where
its bytes come out as the ledger has them the store is what it was, else the unit gets a record of the next generation
and the pass a new manifest, and runs that are pinned to the old one stop. Nobody may build meanwhile: objects are
rewritten in place. Killed at any point it leaves what was damaged damaged.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from kdcache.cache.build.leases import Place, count_leases
from kdcache.cache.errors import KDCacheError, StoreDamagedError, StoreMismatchError, UsageError
from kdcache.cache.images.dataset import SegmentationDataset
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.store.ledger import Commit, Manifest
from kdcache.cache.store.opening import read_spec, root_metadata
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.store import CALIBRATION, IMAGES, SPEC, Store, commit_path, manifest_path
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.upkeep.damage import Damage
from kdcache.cache.upkeep.recompute import recompute_unit, require_same_teacher
from kdcache.cache.upkeep.verify import Verification

_COPY = "only a copy of the store has it: `kdcache pull`, or build the store anew"
_UNMENDABLE = {SPEC: _COPY, CALIBRATION: _COPY}


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store was made from, opened when a repair needs it; both raise KDCacheError where it is not at hand."""

    images: Callable[[], SegmentationDataset]
    teacher: Callable[[], Teacher]


@dataclass(slots=True)
class Repaired:
    """What a repair did."""

    rewritten: list[str] = field(default_factory=list)  # paths
    renewed: list[Place] = field(default_factory=list)  # units that have a record of a new generation
    left: dict[str, str] = field(default_factory=dict)  # by path: why it could not be mended


def repair_store(
    store: Store,
    found: Verification,
    origin: Origin,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Repaired:
    """Mend what `found` says is damaged, as far as that can be done from here.

    Raises:
        UsageError: builders may be at work (unless `force`).
    """
    if not force and (leases := count_leases(store.objects)):
        raise UsageError(
            f"{store.objects.url} has {leases} leases of builders, and a repair rewrites objects in place",
            hint="wait until no build is running, then kdcache gc, or --force",
        )
    repair = _Repair(store, origin)
    by_unit: dict[Place, list[Damage]] = defaultdict(list)
    for damage in found.damage:
        if damage.place is not None:
            by_unit[damage.place].append(damage)
        else:
            repair.attempt([damage], partial(repair.document, damage))
    for done, (place, damages) in enumerate(sorted(by_unit.items()), start=1):
        repair.attempt(damages, partial(repair.unit, place, damages))
        progress(done, len(by_unit), "units mended")
    for index in store.begun_passes():
        repair.attempt([], partial(repair.manifest, index))
    return repair.done


@dataclass(slots=True)
class _Repair:
    store: Store
    origin: Origin
    done: Repaired = field(default_factory=Repaired)
    _generations: dict[int, int] = field(default_factory=dict)  # by pass, that of this repair's records

    def attempt(self, damages: list[Damage], work: Callable[[], None]) -> None:
        """One object or unit that cannot be mended keeps no other from being."""
        try:
            work()
        except KDCacheError as error:
            why = f"{error}" + (f" ({error.hint})" if error.hint else "")
            self.done.left.update({damage.path: why for damage in damages})

    def document(self, damage: Damage) -> None:
        """An object that is no unit's: derived again, if it can be."""
        if damage.path in _UNMENDABLE:
            raise StoreDamagedError("cannot be derived from anything", hint=_UNMENDABLE[damage.path])
        if damage.path == IMAGES:
            self._images()
        elif damage.expected is not None:
            self._rewrite(damage.path, damage.expected)

    def unit(self, place: Place, damages: list[Damage]) -> None:
        """The commit of a unit, then its shards."""
        shards = {damage.array for damage in damages if damage.array is not None}
        for damage in damages:
            if damage.array is None and damage.expected is not None:
                self._rewrite(damage.path, damage.expected)
            elif damage.array is None:  # neither record nor manifest: what stands is adopted, if it decodes
                self._adopt(place)
        if shards:
            self._shards(place, shards)

    def manifest(self, index: int) -> None:
        """The newest one, if all units are committed; a damaged one of that generation is rewritten."""
        newest = self.store.generations(index)
        if len(newest) < self.store.spec.units_per_pass:
            return
        try:
            self.store.finish_pass(index)
        except StoreDamagedError:
            commits = self.store.commits(index)
            manifest = Manifest(pass_index=index, commits=tuple(commits[unit] for unit in sorted(commits)))
            self._rewrite(manifest_path(index, max(newest.values())), manifest.to_bytes())

    def _images(self) -> None:
        images, spec = self.origin.images(), read_spec(self.store.objects)
        if images.fingerprint() != spec.dataset.fingerprint or len(images) != spec.dataset.images:
            raise StoreMismatchError(
                f"the {len(images)} images of {images.name} found here are not the store's"
            )
        ids = canonical_json(list(images.image_ids))
        for path, data in ((IMAGES, ids), ("zarr.json", root_metadata(spec, images.image_ids))):
            self._rewrite(path, data)

    def _adopt(self, place: Place) -> None:
        """A commit of the objects that stand, every row of which has to decode."""
        index, unit = place
        n = len(self.store.spec.unit_rows(unit))
        records = {}
        for name, layout in self.store.layouts(index).items():
            path = self.store.shard_path(layout, index, unit)
            try:
                shard = self.store.objects.read_range(path, 0, layout.max_shard_bytes + 1)
                layout.decode(shard, n)
            except (FileNotFoundError, StoreDamagedError):
                shard = layout.encode(self._recompute(place, {})[name])
                self._rewrite(path, shard)
            records[name] = ObjectRecord.of(shard)
        generation = self.store.generations(index)[unit]
        commit = Commit(
            pass_index=index,
            unit=unit,
            entries=n,
            calibration=self.store.calibration.digest,
            objects=records,
            generation=generation,
        )
        self._rewrite(commit_path(index, unit, generation), commit.to_bytes())

    def _shards(self, place: Place, damaged: set[str]) -> None:
        index, unit = place
        commit = self.store.commit_of(index, unit)
        layouts = self.store.layouts(index)
        rows = self._recompute(place, commit.built)
        shards = {name: layouts[name].encode(rows[name]) for name in layouts}
        inputs = self.store.spec.input_packings.keys()
        for name in inputs - damaged:
            path = self.store.shard_path(layouts[name], index, unit)
            stands = layouts[name].decode(
                self.store.objects.read_range(path, 0, commit.objects[name].size), commit.entries
            )
            if not np.array_equal(stands, rows[name]):
                raise StoreMismatchError(
                    f"unit {unit} of pass {index} holds other inputs than the crops made here",
                    hint="repair with the images and library versions that it was built with",
                )
        if any(ObjectRecord.of(shards[name]) != commit.objects[name] for name in inputs & damaged):
            damaged = set(layouts)  # nothing says that the targets belong to these inputs
        records = dict(commit.objects)
        for name in (name for name in layouts if name in damaged):
            self._rewrite(self.store.shard_path(layouts[name], index, unit), shards[name])
            records[name] = ObjectRecord.of(shards[name])
        if records != commit.objects:
            self._renew(replace(commit, objects=records, generation=self._generation(index)))

    def _renew(self, commit: Commit) -> None:
        path = commit_path(commit.pass_index, commit.unit, commit.generation)
        if not self.store.objects.put_new(path, commit.to_bytes()):
            raise StoreMismatchError(f"{path} was put by another repair meanwhile", hint="kdcache verify")
        self.done.renewed.append((commit.pass_index, commit.unit))

    def _generation(self, index: int) -> int:
        """One more than any in the pass: the manifest's is the highest of its commits', and has to be new."""
        if index not in self._generations:
            known = {*self.store.generations(index).values(), *self.store.manifest_generations(index)}
            self._generations[index] = 1 + max(known)
        return self._generations[index]

    def _recompute(self, place: Place, built: Mapping[str, object]) -> dict[str, np.ndarray]:
        images, teacher, spec = self.origin.images(), self.origin.teacher(), self.store.spec
        require_same_teacher(spec, teacher, self.store.objects.url)
        recorded = built.get("batch_size")
        batch_size = recorded if isinstance(recorded, int) and recorded > 0 else spec.unit_entries
        return recompute_unit(self.store, images, teacher, place, min(batch_size, spec.unit_entries))

    def _rewrite(self, path: str, data: bytes) -> None:
        self.store.objects.replace(path, data)
        self.done.rewritten.append(path)
