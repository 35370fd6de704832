"""Verifying: what the documents and the ledger of a store say is compared with the objects that exist.

Something else vouches for every object. Metadata, goals and manifests follow from other objects and are derived again.
The top `zarr.json` names the spec and the images; commits name the calibration and every shard, and contain their own
digest. So one wrong bit anywhere is found: in a shard when it is hashed (`deep`), elsewhere at once. Objects that the
ledger does not name are counted but are not damage: a builder may be about to commit them.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from kdcache.cache.build.leases import count_leases
from kdcache.cache.codecs.shards import group_metadata, same_metadata
from kdcache.cache.errors import KDCacheError, StoreDamagedError, StoreNotFoundError
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.documents import parse_json, read_document
from kdcache.cache.storage.local import TEMP_FOLDER
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.ledger import Commit, Manifest, read_commit
from kdcache.cache.store.opening import read_image_ids, read_spec, root_metadata
from kdcache.cache.store.spec import VIEWS
from kdcache.cache.store.store import (
    CALIBRATION,
    GOALS,
    IMAGES,
    SPEC,
    Store,
    array_path,
    commit_path,
    goal_path,
    goal_text,
    manifest_path,
)
from kdcache.cache.upkeep.damage import Damage, unit_damage

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was checked, and what was found."""

    damage: tuple[Damage, ...]
    objects: int
    bytes: int  # of shards that were checked or read
    units: int  # committed
    is_complete: bool
    orphans: int  # shards of units without a commit; a builder will use them
    leftovers: int  # half-written files, and leases

    @property
    def is_clean(self) -> bool:
        return not self.damage


def verify_store(
    url: str, *, deep: bool = False, threads: int = 8, progress: Progress = silent
) -> Verification:
    """Check the store at `url` for consistency. With `deep` every object is read, hashed and decoded.

    Raises:
        StoreNotFoundError: nothing of a store is at `url`.
        StoreDamagedError: its spec is unreadable. Everything else depends on it.
    """
    objects = open_objects(url)
    store = Store(url, objects, read_spec(objects), ())
    with ThreadPoolExecutor(threads, thread_name_prefix="verify") as pool:
        return _Check(store, pool, deep, progress).run()


@dataclass(slots=True)
class _Check:
    store: Store  # opened without its image ids, which may be damaged
    pool: ThreadPoolExecutor
    deep: bool
    progress: Progress
    damage: list[Damage] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    partial: Mapping[int, Collection[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.partial = self.store.partial_passes()

    def run(self) -> Verification:
        self._top()
        passes = self._passes()
        if self._calibration(passes):
            self._goals(passes)
            self._metadata(passes)
            commits = {index: self._ledger(index) for index in passes}
            self._units([commit for records in commits.values() for commit in records.values()])
            self._unnamed({index: set(records) for index, records in commits.items()})
        return Verification(
            damage=tuple(self.damage),
            objects=self.counts["objects"],
            bytes=self.counts["bytes"],
            units=self.counts["units"],
            is_complete=not self.damage and self.store.is_complete,
            orphans=self.counts["orphans"],
            leftovers=self.counts["leftovers"],
        )

    def _top(self) -> None:
        """Spec, images and the `zarr.json` that names both."""
        self.counts["objects"] += 1  # the spec, which was readable
        spec, root = self.store.spec, self._read("zarr.json", "is missing")
        named = _names_of(root)
        try:
            image_ids = read_image_ids(self.store.objects, spec)
            self.counts["objects"] += 1
        except StoreDamagedError as error:
            self.damage.append(Damage(path=IMAGES, what=str(error)))
            image_ids = None
        if root is None:
            return
        if named is None:
            expected = None if image_ids is None else root_metadata(spec, image_ids)
            self.damage.append(
                Damage(path="zarr.json", what="is not the metadata of a store", expected=expected)
            )
        elif named["key"] != spec.key:
            self.damage.append(Damage(path=SPEC, what="is not the spec that the store's zarr.json names"))
        elif image_ids is not None and root != root_metadata(spec, image_ids):
            self.damage.append(
                Damage(path=IMAGES, what="are not the images that the store's zarr.json names")
            )

    def _arrays_here(self, index: int) -> Collection[str]:
        """The arrays of a pass that are here: all, unless a copy left some out."""
        return self.partial.get(index, self.store.arrays)

    def _passes(self) -> list[int]:
        """Passes of which anything exists."""
        created = [name for name in self.store.objects.names("passes") if name.isdecimal()]
        return sorted({*self.store.begun_passes(), *map(int, created)})

    def _calibration(self, passes: list[int]) -> bool:
        """True if the calibration is the one that commits name. Without it nothing else can be checked."""
        named = set(self._each(self._named_calibrations, passes)) - {None}
        try:
            digest = self.store.calibration.digest
        except StoreNotFoundError:
            if named:
                self.damage.append(Damage(path=CALIBRATION, what="is missing"))
            return False
        except StoreDamagedError as error:
            self.damage.append(Damage(path=CALIBRATION, what=str(error)))
            return False
        self.counts["objects"] += 1
        if named and digest not in named:
            self.damage.append(Damage(path=CALIBRATION, what="is not the one that the commits name"))
            return False
        return True

    def _named_calibrations(self, index: int) -> str | None:
        """The calibration's digest in the first readable commit of a pass, or else in the metadata of its views."""
        objects = self.store.objects
        for unit, generation in self.store.generations(index).items():
            path = commit_path(index, unit, generation)
            try:
                return read_commit(read_document(objects, path), path).calibration
            except (StoreDamagedError, FileNotFoundError):
                continue
        try:
            metadata = parse_json(
                read_document(objects, f"{array_path(index, VIEWS)}/zarr.json"), VIEWS, dict
            )
            return str(metadata["attributes"]["kdcache"]["calibration"])
        except (StoreDamagedError, FileNotFoundError, KeyError, TypeError):
            return None

    def _goals(self, passes: list[int]) -> None:
        needed = max(passes, default=-1) + 1  # builders record the goal before they start a pass
        if needed > self.store.goal:
            self._compare(goal_path(needed), goal_text(needed))
        for name in self.store.objects.names(GOALS):
            if name.isdecimal() and goal_path(int(name)) == f"{GOALS}/{name}":
                self._compare(f"{GOALS}/{name}", goal_text(int(name)))

    def _metadata(self, passes: list[int]) -> None:
        for index in passes:
            for path, data in self.store.pass_metadata(index, self._arrays_here(index)).items():
                self._compare(path, data)

    def _ledger(self, index: int) -> dict[int, Commit]:
        """The newest commit of every unit of a pass, from its manifest and its records."""
        try:
            generations = self.store.generations(index)
        except StoreDamagedError as error:
            self.damage.append(Damage(path=f"kd/passes/{index:03d}/units", what=str(error)))
            return {}
        manifest = self._manifest(index)
        listed = {} if manifest is None else {commit.unit: commit for commit in manifest.commits}
        for unit, commit in listed.items():
            generations[unit] = max(generations.get(unit, 0), commit.generation)
        records = dict(self._each(lambda item: self._record(index, *item, listed), generations.items()))
        commits = {unit: commit for unit, commit in records.items() if commit is not None}
        self.counts["units"] += len(generations)
        if manifest is not None and len(commits) == self.store.spec.units_per_pass:
            ordered = tuple(commits[unit] for unit in sorted(commits))
            derived = Manifest(pass_index=index, commits=ordered)
            if derived.to_bytes() != manifest.to_bytes():
                newest = manifest_path(index, max(commit.generation for commit in ordered))
                self.damage.append(
                    Damage(path=newest, what="does not list the commits", expected=derived.to_bytes())
                )
        return commits

    def _manifest(self, index: int) -> Manifest | None:
        try:
            manifest = self.store.manifest(index)
        except StoreDamagedError as error:
            path = manifest_path(index, max(self.store.manifest_generations(index)))
            self.damage.append(Damage(path=path, what=str(error)))
            return None
        self.counts["objects"] += manifest is not None
        return manifest

    def _record(
        self, index: int, unit: int, generation: int, listed: Mapping[int, Commit]
    ) -> tuple[int, Commit | None]:
        """A unit and its commit: from the record, or from the manifest if the record is damaged."""
        try:
            commit = self.store.read_commit(index, unit, generation)
            self.counts["objects"] += 1
            return unit, commit
        except StoreDamagedError as error:
            known = listed.get(unit)
            known = known if known is not None and known.generation == generation else None
            path = commit_path(index, unit, generation)
            expected = None if known is None else known.to_bytes()  # without `built`, which is lost
            self.damage.append(Damage(path=path, what=str(error), unit_id=(index, unit), expected=expected))
            return unit, known

    def _units(self, commits: list[Commit]) -> None:
        layouts = {
            index: {
                name: layout
                for name, layout in self.store.layouts(index).items()
                if name in self._arrays_here(index)
            }
            for index in {commit.pass_index for commit in commits}
        }

        def check(commit: Commit) -> tuple[int, list[Damage]]:
            found = list(unit_damage(self.store, layouts[commit.pass_index], commit, deep=self.deep))
            return sum(commit.objects[name].size for name in layouts[commit.pass_index]), found

        for done, (size, found) in enumerate(self._each(check, commits), start=1):
            self.counts["bytes"] += size
            self.counts["objects"] += len(layouts[commits[done - 1].pass_index])
            self.damage += found
            self.progress(done, len(commits), f"units, {len(self.damage)} damaged objects")

    def _unnamed(self, committed: Mapping[int, set[int]]) -> None:
        """Count the objects that no record names."""
        for index, units in committed.items():
            for name in self.store.layouts(index):
                found = self.store.objects.names(f"{array_path(index, name)}/c")
                self.counts["orphans"] += sum(unit.isdecimal() and int(unit) not in units for unit in found)
        objects = self.store.objects
        self.counts["leftovers"] = len(objects.names(TEMP_FOLDER)) + count_leases(objects)

    def _compare(self, path: str, expected: bytes) -> None:
        """Check an object whose bytes follow from others."""
        stored = self._read(path, "is missing", expected)
        if stored is None or stored == expected:
            return
        if not path.endswith("/zarr.json") or not same_metadata(stored, expected):
            self.damage.append(Damage(path=path, what="is not what the spec implies", expected=expected))

    def _read(self, path: str, missing: str, expected: bytes | None = None) -> bytes | None:
        self.counts["objects"] += 1
        try:
            return read_document(self.store.objects, path)
        except FileNotFoundError:
            self.damage.append(Damage(path=path, what=missing, expected=expected))
        except StoreDamagedError as error:
            self.damage.append(Damage(path=path, what=str(error), expected=expected))
        return None

    def _each(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """`work` of every item, in their order, on all threads."""
        return self.pool.map(work, items)


def _names_of(root: bytes | None) -> Mapping[str, str] | None:
    """What a store's top `zarr.json` names; None if it does not have its one valid form."""
    try:
        named = parse_json(root or b"", "zarr.json", dict)["attributes"]["kdcache"]
        same = root == group_metadata({"kdcache": named}) and {*named} == {"key", "images"}
        return named if same and all(isinstance(value, str) for value in named.values()) else None
    except (KDCacheError, KeyError, TypeError):
        return None
