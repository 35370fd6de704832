"""The store: a plain Zarr v3 hierarchy, and beside it a small ledger that says which parts of it exist.

Every object is created once and never changed. A pass is a group of its own, so more views are more groups.

zarr.json                                  Zarr group
kd/spec.json  kd/images.json               the request, and the image ids in order
kd/calibration.json                        what the request left open, measured once
kd/goals/0004                              four passes were asked for
kd/passes/000/units/000012-0.json          commit of unit 12 of pass 0, generation 0
kd/passes/000/manifest-0.json              all commits of the complete pass
kd/partial/000  000-logits                 this copy lacks arrays of pass 0; its logits are complete
passes/000/views/zarr.json   c/12/0        inputs: view parameters and crop digests, int32
passes/000/crops/...  labels/...           also inputs, if the store keeps crops
passes/000/logits/zarr.json  c/12/0/0/0    targets, (entry, channel, y, x)
passes/000/features/...
"""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from kdcache.cache.codecs.shards import ArrayLayout, group_metadata, same_metadata
from kdcache.cache.errors import StoreDamagedError, StoreMismatchError, StoreNotFoundError
from kdcache.cache.storage.documents import read_document, require_document
from kdcache.cache.storage.objects import ObjectRecord, Objects
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.calibration import Calibration, CalibrationSummary
from kdcache.cache.store.ledger import Commit, Manifest, read_commit, read_manifest
from kdcache.cache.store.spec import MAX_UNIT_BYTES, VIEWS, StoreSpec, canonical_json
from kdcache.cache.views.replay import ENTRY_COLUMNS

SPEC = "kd/spec.json"
IMAGES = "kd/images.json"
CALIBRATION = "kd/calibration.json"
GOALS = "kd/goals"
PARTIAL = "kd/partial"

TOP = {"zarr.json", "kd", "passes"}  # all names at the top of a store

# Names of records. Other names in the ledger's folders are ignored: file systems and people leave such files.
COMMIT_NAME = re.compile(r"([0-9]{6,9})-([0-9]{1,9})\.json")
MANIFEST_NAME = re.compile(r"manifest-([0-9]{1,9})\.json")
PASS_NAME = re.compile(r"([0-9]{3,9})")
GOAL_NAME = re.compile(r"([0-9]{4,9})")
PARTIAL_NAME = re.compile(r"([0-9]{3,9})(?:-(\w+))?")


def pass_folder(pass_index: int) -> str:
    """The group of a pass."""
    return f"passes/{pass_index:03d}"


def array_path(pass_index: int, name: str) -> str:
    """Path of an array of a pass."""
    return f"{pass_folder(pass_index)}/{name}"


def ledger_folder(pass_index: int) -> str:
    """Folder of the commits and manifests of a pass."""
    return f"kd/passes/{pass_index:03d}"


def goal_path(passes: int) -> str:
    """Path of the record that asks for so many passes."""
    return f"{GOALS}/{passes:04d}"


def manifest_path(pass_index: int, generation: int) -> str:
    """Path of a manifest of a pass."""
    return f"{ledger_folder(pass_index)}/manifest-{generation}.json"


def commit_path(pass_index: int, unit: int, generation: int) -> str:
    """Path of the commit record of a unit."""
    return f"{ledger_folder(pass_index)}/units/{unit:06d}-{generation}.json"


class Store:
    """An open store. Reading needs nothing else; creating is idempotent."""

    def __init__(self, url: str, objects: Objects, spec: StoreSpec, image_ids: tuple[str, ...]) -> None:
        self.url = url
        self.objects = objects
        self.spec = spec
        self.image_ids = image_ids
        # True: a record is refused if its shard is larger than its codec can make. `ls` reads no shard and turns this
        # off, because codecs import torch, which takes seconds.
        self.checks_sizes = True

    @cached_property
    def calibration(self) -> Calibration:
        """The store's calibration, checked against its spec.

        Raises:
            StoreNotFoundError: no builder has measured it yet.
            StoreDamagedError: it is malformed, or belongs to another spec.
        """
        calibration = Calibration.from_bytes(self._read_calibration())
        if calibration.spec_key != self.spec.key or set(calibration.codecs) != set(self.spec.targets):
            raise StoreDamagedError(f"{redact(self.url)}: the calibration belongs to another spec")
        for name, target in self.spec.targets.items():
            if not calibration.codecs[name].fits(target.shape):
                raise StoreDamagedError(f"{redact(self.url)}: the codec of {name} is for another shape")
        rows = sum(packing.row_bytes for packing in self.spec.packings(calibration.codecs).values())
        # Twice the limit, because a transform pads maps to whole blocks.
        if self.spec.rows_at_once * rows > 2 * MAX_UNIT_BYTES:
            raise StoreDamagedError(f"{redact(self.url)}: a unit unpacks to more bytes than allowed")
        return calibration

    @cached_property
    def calibration_summary(self) -> CalibrationSummary:
        """The calibration without its codecs, and so without torch. Raises as `calibration` does."""
        return CalibrationSummary.from_bytes(self._read_calibration(), self.spec.key)

    def _read_calibration(self) -> bytes:
        try:
            return read_document(self.objects, CALIBRATION)
        except FileNotFoundError:
            raise StoreNotFoundError(
                f"{redact(self.url)} has no calibration yet, so nothing was built",
                hint="run its `kdcache build` again",
            ) from None

    def adopt_calibration(self, measured: Calibration) -> Calibration:
        """Store `measured`, or keep the calibration that exists. Returns what is stored now."""
        self.objects.put_new(CALIBRATION, measured.to_bytes())
        for name in ("calibration", "calibration_summary"):
            self.__dict__.pop(name, None)
        return self.calibration

    @property
    def is_calibrated(self) -> bool:
        """True if a builder has measured the calibration; costs one listing."""
        return "calibration.json" in self.objects.names("kd")

    @property
    def goal(self) -> int:
        """The number of passes asked for: the largest goal on record."""
        return max((number for (number,) in self._numbers(GOALS, GOAL_NAME)), default=0)

    def raise_goal(self, passes: int) -> int:
        """Record that `passes` passes are asked for. Returns the goal, which never shrinks."""
        if passes > self.goal:
            self.objects.put_new(goal_path(passes), goal_text(passes))
        return self.goal

    def layouts(self, pass_index: int) -> dict[str, ArrayLayout]:
        """The arrays of a pass, inputs first."""
        spec = self.spec
        calibration = self.calibration
        common = {"pass": pass_index, "calibration": calibration.digest}
        about: dict[str, dict[str, Any]] = {
            name: {"columns": list(ENTRY_COLUMNS)} if name == VIEWS else {"inputs": spec.inputs}
            for name in spec.input_packings
        }
        about |= {name: {"codec": codec.summary()} for name, codec in calibration.codecs.items()}
        return {
            name: ArrayLayout.of_packing(
                name,
                packing,
                rows=spec.dataset.images,
                unit_entries=spec.unit_entries,
                attributes={"kdcache": {**common, **about[name]}},
            )
            for name, packing in spec.packings(calibration.codecs).items()
        }

    @cached_property
    def max_shard_bytes(self) -> dict[str, int]:
        """The upper limit for the size of a shard, by array."""
        return {name: layout.max_shard_bytes for name, layout in self.layouts(0).items()}

    @property
    def arrays(self) -> tuple[str, ...]:
        """The names of the arrays of a pass, inputs first."""
        return (*self.spec.input_packings, *sorted(self.spec.targets))

    def pass_metadata(self, pass_index: int, arrays: Collection[str] | None = None) -> dict[str, bytes]:
        """The zarr.json of a pass, of its arrays (default: all) and of the group above it, by path."""
        groups = {
            "passes/zarr.json": group_metadata({}),
            f"{pass_folder(pass_index)}/zarr.json": group_metadata({"kdcache": {"pass": pass_index}}),
        }
        named = {
            f"{array_path(pass_index, name)}/zarr.json": layout.metadata()
            for name, layout in self.layouts(pass_index).items()
            if arrays is None or name in arrays
        }
        return groups | named

    def create_pass(self, pass_index: int, arrays: Collection[str] | None = None) -> None:
        """Create the group and the metadata of the arrays (default: all), or check those that exist.

        Raises:
            StoreDamagedError: existing metadata differs from what the spec implies.
        """
        for path, data in self.pass_metadata(pass_index, arrays).items():
            self._put_metadata(path, data)

    def shard_path(self, layout: ArrayLayout, pass_index: int, unit: int) -> str:
        """Path of the shard of a unit."""
        return f"{array_path(pass_index, layout.name)}/{layout.shard_path(unit)}"

    def put_unit(
        self, pass_index: int, unit: int, rows: Mapping[str, np.ndarray], built: Mapping[str, object]
    ) -> Commit:
        """Encode, store and commit one unit: inputs first, the commit record last.

        Existing objects are kept: inputs if they are the same as these, targets if every row decodes.

        Raises:
            StoreMismatchError: the stored inputs of the unit differ from these.
            StoreDamagedError: an existing object of the unit does not decode.
        """
        records = {}
        n = len(rows[VIEWS])
        for name, layout in self.layouts(pass_index).items():
            path = self.shard_path(layout, pass_index, unit)
            data = layout.encode(rows[name])
            stored = self.objects.put_same(path, data)
            if stored != data:
                # Another builder's. Its targets may differ by rounding, and are as good; its inputs must be equal.
                found = layout.decode(stored, n)
                if name in self.spec.input_packings and not np.array_equal(found, rows[name]):
                    raise StoreMismatchError(
                        f"unit {unit} of pass {pass_index} has stored inputs that differ from the crops made here",
                        hint="the other builder has other images or image libraries; let it finish this unit",
                    )
            records[name] = ObjectRecord.of(stored)
        commit = Commit(
            pass_index=pass_index,
            unit=unit,
            entries=n,
            calibration=self.calibration.digest,
            objects=records,
            built=dict(built),
        )
        return self.put_commit(commit)

    def put_commit(self, commit: Commit) -> Commit:
        """Store the record of a unit whose objects exist. Returns the record that is stored now."""
        where = commit_path(commit.pass_index, commit.unit, commit.generation)
        return read_commit(self.objects.put_same(where, commit.to_bytes()), where)

    def committed_units(self, pass_index: int) -> set[int]:
        """The units that have a commit record; costs one listing."""
        return set(self.generations(pass_index))

    def is_committed(self, pass_index: int, unit: int) -> bool:
        """True if a unit has a commit record; costs one request."""
        try:
            return bool(self.objects.size(commit_path(pass_index, unit, 0)))
        except FileNotFoundError:
            return False

    def commits(self, pass_index: int) -> dict[int, Commit]:
        """For every committed unit its record of the highest generation."""
        newest = self.generations(pass_index)
        return {unit: self.read_commit(pass_index, unit, newest[unit]) for unit in sorted(newest)}

    def commit_of(self, pass_index: int, unit: int, generation: int | None = None) -> Commit:
        """One of `commits`; no listing if its generation is given. Raises KeyError if the unit is not committed."""
        if generation is None:
            generation = self.generations(pass_index)[unit]
        return self.read_commit(pass_index, unit, generation)

    def finish_pass(self, pass_index: int) -> Manifest | None:
        """The manifest of a pass, created if it is missing; None while some unit is not committed."""
        units = range(self.spec.units_per_pass)
        newest = self.generations(pass_index)
        if not newest.keys() >= set(units):
            return None
        # A repaired unit has a higher generation than the manifest, which then needs a new one.
        if max(newest.values()) not in self.manifest_generations(pass_index):
            commits = tuple(self.read_commit(pass_index, unit, newest[unit]) for unit in units)
            self.put_manifest(Manifest(pass_index=pass_index, commits=commits))
        return self.manifest(pass_index)

    def put_manifest(self, manifest: Manifest) -> None:
        """Store the manifest of a pass whose units are all committed."""
        generation = max(commit.generation for commit in manifest.commits)
        self.objects.put_new(manifest_path(manifest.pass_index, generation), manifest.to_bytes())

    def manifest(self, pass_index: int) -> Manifest | None:
        """The manifest of the highest generation; None if the pass is not complete."""
        generations = self.manifest_generations(pass_index)
        return self.read_manifest(pass_index, max(generations)) if generations else None

    def read_manifest(self, pass_index: int, generation: int) -> Manifest:
        """A manifest, with every commit in it checked. Raises StoreDamagedError."""
        path = manifest_path(pass_index, generation)
        manifest = read_manifest(require_document(self.objects, path), path)
        if len(manifest.commits) != self.spec.units_per_pass:
            raise StoreDamagedError(
                f"{path} lists {len(manifest.commits)} units, but a pass has {self.spec.units_per_pass}"
            )
        if (manifest.pass_index, max(c.generation for c in manifest.commits)) != (pass_index, generation):
            raise StoreDamagedError(f"{path} is the manifest of another pass or generation")
        for unit, commit in enumerate(manifest.commits):
            self._check_commit(commit, pass_index, unit)
        return manifest

    def begun_passes(self) -> list[int]:
        """Passes that have a commit record or a manifest, in order."""
        return sorted(number for (number,) in self._numbers("kd/passes", PASS_NAME))

    def complete_passes(self, arrays: Collection[str] = (VIEWS,)) -> list[int]:
        """Passes that have a manifest and all of these arrays, in order."""
        partial = self.partial_passes()
        here = [index for index in self.begun_passes() if set(arrays) <= partial.get(index, set(self.arrays))]
        return [index for index in here if self.manifest_generations(index)]

    @property
    def is_complete(self) -> bool:
        """True if every pass of the goal is complete."""
        complete = set(self.complete_passes())
        return self.goal > 0 and all(index in complete for index in range(self.goal))

    def partial_passes(self) -> dict[int, set[str]]:
        """Passes that a copy brought here without all their arrays, with the arrays that are complete here."""
        partial: dict[int, set[str]] = {}
        for match in map(PARTIAL_NAME.fullmatch, self.objects.names(PARTIAL)):
            if match:
                partial.setdefault(int(match[1]), set()).update({match[2]} & set(self.arrays))
        return partial

    def mark_partial(self, pass_index: int) -> None:
        """Record that a pass will lack arrays that its commits name. To be called before its first commit."""
        self.objects.put_new(f"{PARTIAL}/{pass_index:03d}", b"{}")

    def mark_array_complete(self, pass_index: int, array: str) -> None:
        """Record that all objects of an array of a partial pass are here."""
        self.objects.put_new(f"{PARTIAL}/{pass_index:03d}-{array}", b"{}")

    def generations(self, pass_index: int) -> dict[int, int]:
        """For every committed unit the highest generation of its records."""
        generations: dict[int, int] = {}
        folder = f"{ledger_folder(pass_index)}/units"
        for unit, generation in self._numbers(folder, COMMIT_NAME):
            if unit >= self.spec.units_per_pass:
                raise StoreDamagedError(
                    f"{folder} has a commit of unit {unit}, but a pass has only {self.spec.units_per_pass}"
                )
            generations[unit] = max(generation, generations.get(unit, 0))
        return generations

    def manifest_generations(self, pass_index: int) -> set[int]:
        """The generations of a pass's manifests; empty while it is not complete."""
        return {generation for (generation,) in self._numbers(ledger_folder(pass_index), MANIFEST_NAME)}

    def _numbers(self, folder: str, pattern: re.Pattern[str]) -> Iterable[tuple[int, ...]]:
        """The numbers in those names of a folder that match the pattern."""
        matches = (pattern.fullmatch(name) for name in self.objects.names(folder))
        return [tuple(int(number) for number in match.groups()) for match in matches if match]

    def _put_metadata(self, path: str, data: bytes) -> None:
        stored = self.objects.put_same(path, data)
        if stored != data and not same_metadata(stored, data):
            raise StoreDamagedError(
                f"{redact(self.url)}/{path} differs from the metadata that the spec implies"
            )

    def read_commit(self, pass_index: int, unit: int, generation: int) -> Commit:
        """A commit record, checked. Raises StoreDamagedError."""
        path = commit_path(pass_index, unit, generation)
        commit = read_commit(require_document(self.objects, path), path)
        if commit.generation != generation:
            raise StoreDamagedError(f"{path} is a commit of generation {commit.generation}")
        self._check_commit(commit, pass_index, unit)
        return commit

    def _check_commit(self, commit: Commit, pass_index: int, unit: int) -> None:
        expected = (pass_index, unit, len(self.spec.unit_rows(unit)), self.calibration_summary.digest)
        found = (commit.pass_index, commit.unit, commit.entries, commit.calibration)
        if found != expected or set(commit.objects) != {*self.spec.input_packings, *self.spec.targets}:
            raise StoreDamagedError(
                f"the commit of unit {unit} of pass {pass_index} belongs to another unit, calibration or spec"
            )
        for name, record in commit.objects.items():
            if self.checks_sizes and record.size > self.max_shard_bytes[name]:
                raise StoreDamagedError(
                    f"the commit of unit {unit} of pass {pass_index} records {record.size} bytes of {name},"
                    f" but a shard of it has at most {self.max_shard_bytes[name]}"
                )


def goal_text(passes: int) -> bytes:
    """The content of a goal's record."""
    return canonical_json({"passes": passes})
