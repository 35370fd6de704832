"""Repair: what `verify` found damaged is computed again and replaced.

Objects that follow from others are derived and rewritten. A damaged shard is computed by the teacher from the dataset.
If its bytes are those that the ledger records, the store is as before. If not, the unit gets a commit of the next
generation and the pass a new manifest, and runs that are pinned to the old manifest stop. Nobody may build meanwhile,
because objects are overwritten. If a repair is killed, what was damaged is still damaged, and nothing else is.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from kdcache.cache.build.leases import UnitId, count_leases
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

_COPY = "only a copy of the store still has it: `kdcache pull` from one, or build the store again"
_IRREPARABLE = {SPEC: _COPY, CALIBRATION: _COPY}


@dataclass(frozen=True, slots=True)
class Origin:
    """What a store was made from. Opened when a repair needs it; raises KDCacheError if that fails."""

    images: Callable[[], SegmentationDataset]
    teacher: Callable[[], Teacher]


@dataclass(slots=True)
class Repaired:
    """The outcome of a repair."""

    rewritten: list[str] = field(default_factory=list)  # paths
    renewed: list[UnitId] = field(default_factory=list)  # units with a commit of a new generation
    left: dict[str, str] = field(default_factory=dict)  # by path: why it could not be repaired


def repair_store(
    store: Store,
    found: Verification,
    origin: Origin,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> Repaired:
    """Repair what `found` lists as damaged, as far as possible.

    Raises:
        UsageError: builders may be working (unless `force`).
    """
    if not force and (leases := count_leases(store.objects)):
        raise UsageError(
            f"{store.objects.url} has {leases} leases of builders, but a repair overwrites objects",
            hint="wait until no build is running; then remove old leases with kdcache gc, or use --force",
        )
    repair = _Repair(store, origin)
    by_unit: dict[UnitId, list[Damage]] = defaultdict(list)
    for damage in found.damage:
        if damage.unit_id is not None:
            by_unit[damage.unit_id].append(damage)
        else:
            repair.attempt([damage], partial(repair.document, damage))
    for done, (unit_id, damages) in enumerate(sorted(by_unit.items()), start=1):
        repair.attempt(damages, partial(repair.unit, unit_id, damages))
        progress(done, len(by_unit), "units repaired")
    for index in store.begun_passes():
        repair.attempt([], partial(repair.manifest, index))
    return repair.done


@dataclass(slots=True)
class _Repair:
    store: Store
    origin: Origin
    done: Repaired = field(default_factory=Repaired)
    # By pass: the generation of this repair's commits
    _generations: dict[int, int] = field(default_factory=dict)

    def attempt(self, damages: list[Damage], work: Callable[[], None]) -> None:
        """Do `work`. If it fails, record why, and continue with the other damage."""
        try:
            work()
        except KDCacheError as error:
            why = f"{error}" + (f" ({error.hint})" if error.hint else "")
            self.done.left.update({damage.path: why for damage in damages})

    def document(self, damage: Damage) -> None:
        """Rewrite an object that belongs to no unit, if it can be derived."""
        if damage.path in _IRREPARABLE:
            raise StoreDamagedError("does not follow from other objects", hint=_IRREPARABLE[damage.path])
        if damage.path == IMAGES:
            self._images()
        elif damage.expected is not None:
            self._rewrite(damage.path, damage.expected)

    def unit(self, unit_id: UnitId, damages: list[Damage]) -> None:
        """Repair the commit of a unit, then its shards."""
        shards = {damage.array for damage in damages if damage.array is not None}
        for damage in damages:
            if damage.array is None and damage.expected is not None:
                self._rewrite(damage.path, damage.expected)
            elif damage.array is None:
                # Neither the record nor a manifest is left: commit the existing shards again
                self._adopt(unit_id)
        if shards:
            self._shards(unit_id, shards)

    def manifest(self, index: int) -> None:
        """Bring the manifest up to date if all units are committed; rewrite a damaged one."""
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
                f"the {len(images)} images of {images.name} found here are not the store's",
                hint="name the store's dataset with --data-root DIR",
            )
        ids = canonical_json(list(images.image_ids))
        for path, data in ((IMAGES, ids), ("zarr.json", root_metadata(spec, images.image_ids))):
            self._rewrite(path, data)

    def _adopt(self, unit_id: UnitId) -> None:
        """Commit the existing objects of a unit again. Every row must decode; otherwise the shard is recomputed."""
        index, unit = unit_id
        n = len(self.store.spec.unit_rows(unit))
        records = {}
        for name, layout in self.store.layouts(index).items():
            path = self.store.shard_path(layout, index, unit)
            try:
                shard = self.store.objects.read_range(path, 0, layout.max_shard_bytes + 1)
                layout.decode(shard, n)
            except (FileNotFoundError, StoreDamagedError):
                shard = layout.encode(self._recompute(unit_id, {})[name])
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

    def _shards(self, unit_id: UnitId, damaged: set[str]) -> None:
        index, unit = unit_id
        commit = self.store.commit_of(index, unit)
        layouts = self.store.layouts(index)
        rows = self._recompute(unit_id, commit.built)
        shards = {name: layouts[name].encode(rows[name]) for name in layouts}
        inputs = self.store.spec.input_packings.keys()
        # Before anything is overwritten: if intact inputs differ from these, the targets would not belong to them.
        for name in inputs - damaged:
            path = self.store.shard_path(layouts[name], index, unit)
            stored = layouts[name].decode(
                self.store.objects.read_range(path, 0, commit.objects[name].size), commit.entries
            )
            if not np.array_equal(stored, rows[name]):
                raise StoreMismatchError(
                    f"unit {unit} of pass {index} has other inputs than the crops made here",
                    hint="repair with the images and library versions of the build; `kdcache info` shows them",
                )
        if any(ObjectRecord.of(shards[name]) != commit.objects[name] for name in inputs & damaged):
            damaged = set(layouts)  # the inputs are new, so the old targets may not belong to them
        records = dict(commit.objects)
        for name in (name for name in layouts if name in damaged):
            self._rewrite(self.store.shard_path(layouts[name], index, unit), shards[name])
            records[name] = ObjectRecord.of(shards[name])
        if records != commit.objects:
            self._renew(replace(commit, objects=records, generation=self._generation(index)))

    def _renew(self, commit: Commit) -> None:
        path = commit_path(commit.pass_index, commit.unit, commit.generation)
        if not self.store.objects.put_new(path, commit.to_bytes()):
            raise StoreMismatchError(
                f"{path} was written by another repair meanwhile",
                hint=f"run `kdcache verify {self.store.objects.url}` again",
            )
        self.done.renewed.append((commit.pass_index, commit.unit))

    def _generation(self, index: int) -> int:
        """One more than any generation in the pass, because a new manifest takes the highest of its commits' and its
        name must be new."""
        if index not in self._generations:
            known = {*self.store.generations(index).values(), *self.store.manifest_generations(index)}
            self._generations[index] = 1 + max(known)
        return self._generations[index]

    def _recompute(self, unit_id: UnitId, built: Mapping[str, object]) -> dict[str, np.ndarray]:
        images, teacher, spec = self.origin.images(), self.origin.teacher(), self.store.spec
        require_same_teacher(spec, teacher, self.store.objects.url)
        recorded = built.get("batch_size")
        # Another batch size could round differently, and then the unit would need a new generation.
        batch_size = recorded if isinstance(recorded, int) and recorded > 0 else spec.unit_entries
        return recompute_unit(self.store, images, teacher, unit_id, min(batch_size, spec.unit_entries))

    def _rewrite(self, path: str, data: bytes) -> None:
        self.store.objects.replace(path, data)
        self.done.rewritten.append(path)
