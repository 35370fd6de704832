"""The store: a plain Zarr v3 hierarchy beside a small ledger that says which of it exists.

    zarr.json                                  Zarr group
    kd/spec.json  kd/images.json               the request, and the image ids in order
    kd/calibration.json                        what the request left open, measured once
    kd/goals/0004                              four passes are wanted
    kd/passes/000/units/000012-0.json          commit of unit 12 of pass 0, generation 0
    kd/passes/000/manifest-0.json              all commits of the complete pass
    passes/000/views/zarr.json   c/12/0        inputs: view parameters and crop digests, int32
    passes/000/logits/zarr.json  c/12/0/0/0    targets, (entry, channel, y, x)
    passes/000/features/...

Every object is created once and never changed; a pass is its own group, so more views are more groups.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from kdcache.cache.calibration import Calibration
from kdcache.cache.codecs import stored_dtype
from kdcache.cache.errors import StoreDamagedError, StoreMismatchError, StoreNotFoundError
from kdcache.cache.ledger import Commit, Manifest, ObjectRecord, read_commit, read_manifest
from kdcache.cache.objects import Objects, join_url, open_objects, redact, require_object
from kdcache.cache.replay import ENTRY_COLUMNS
from kdcache.cache.shards import ArrayLayout, group_metadata, same_metadata
from kdcache.cache.spec import StoreSpec, canonical_json

SPEC = "kd/spec.json"
IMAGES = "kd/images.json"
CALIBRATION = "kd/calibration.json"
GOALS = "kd/goals"
VIEWS = "views"  # the array of inputs

_Document = TypeVar("_Document", dict[str, Any], list[Any])


class Store:
    """An open store. Reading needs nothing but the store; creating is idempotent."""

    def __init__(self, url: str, objects: Objects, spec: StoreSpec, image_ids: tuple[str, ...]) -> None:
        self.url = url
        self.objects = objects
        self.spec = spec
        self.image_ids = image_ids

    @cached_property
    def calibration(self) -> Calibration:
        """Raises StoreNotFoundError while no builder has measured it."""
        try:
            calibration = Calibration.from_bytes(self.objects.get(CALIBRATION))
        except FileNotFoundError:
            raise StoreNotFoundError(
                f"{redact(self.url)} is begun, but holds nothing yet", hint="run its `kdcache build` again"
            ) from None
        if calibration.spec_key != self.spec.key or set(calibration.codecs) != set(self.spec.targets):
            raise StoreDamagedError(f"{redact(self.url)}: the calibration belongs to another spec")
        return calibration

    def adopt_calibration(self, measured: Calibration) -> Calibration:
        """Put `measured`, or take the one that stands."""
        self.objects.put_new(CALIBRATION, measured.to_bytes())
        self.__dict__.pop("calibration", None)
        return self.calibration

    @property
    def is_calibrated(self) -> bool:
        return "calibration.json" in self.objects.names("kd")

    @property
    def goal(self) -> int:
        """How many passes are wanted: the largest goal on record."""
        return max((int(name) for name in self.objects.names(GOALS)), default=0)

    def raise_goal(self, passes: int) -> int:
        """Record that `passes` passes are wanted; the goal afterwards, which never shrinks."""
        if passes > self.goal:
            self.objects.put_new(f"{GOALS}/{passes:04d}", canonical_json({"passes": passes}))
        return self.goal

    def layouts(self, pass_index: int) -> dict[str, ArrayLayout]:
        """The arrays of a pass, inputs first."""
        spec = self.spec
        calibration = self.calibration
        common = {"pass": pass_index, "calibration": calibration.digest}
        inputs = ArrayLayout(
            name=VIEWS,
            rows=spec.dataset.images,
            row_shape=(len(ENTRY_COLUMNS),),
            dtype="int32",
            unit_entries=spec.unit_entries,
            dimensions=("entry", "column"),
            attributes={"kdcache": {**common, "columns": list(ENTRY_COLUMNS)}},
        )
        targets = {
            name: ArrayLayout(
                name=name,
                rows=spec.dataset.images,
                row_shape=target.shape,
                dtype=stored_dtype(target.codec),
                unit_entries=spec.unit_entries,
                dimensions=("entry", "channel", "y", "x"),
                attributes={"kdcache": {**common, "codec": calibration.codecs[name].to_dict()}},
            )
            for name, target in sorted(spec.targets.items())
        }
        return {VIEWS: inputs, **targets}

    def create_pass(self, pass_index: int) -> None:
        """Put the group and the array metadata of a pass, or check that those that stand agree."""
        self._put_metadata("passes/zarr.json", group_metadata({}))
        folder = _pass_folder(pass_index)
        self._put_metadata(f"{folder}/zarr.json", group_metadata({"kdcache": {"pass": pass_index}}))
        for name, layout in self.layouts(pass_index).items():
            self._put_metadata(f"{folder}/{name}/zarr.json", layout.metadata())

    def shard_path(self, layout: ArrayLayout, pass_index: int, unit: int) -> str:
        return f"{_pass_folder(pass_index)}/{layout.name}/{layout.shard_path(unit)}"

    def put_unit(
        self, pass_index: int, unit: int, rows: Mapping[str, np.ndarray], built: Mapping[str, object]
    ) -> Commit:
        """Encode, put and commit one unit: inputs first, the record last.

        An object that stands already is adopted: inputs only when they are the same, targets when every row decodes.

        Raises:
            StoreMismatchError: the unit's inputs on record differ from `rows["views"]`.
            StoreDamagedError: an object of the unit that stands already cannot be decoded.
        """
        records = {}
        n = len(rows[VIEWS])
        for name, layout in self.layouts(pass_index).items():
            path = self.shard_path(layout, pass_index, unit)
            data = layout.encode(rows[name])
            stands = self.objects.put_same(path, data)
            if stands != data:
                found = layout.decode(stands, n)
                if name == VIEWS and not np.array_equal(found, rows[VIEWS]):
                    raise StoreMismatchError(
                        f"unit {unit} of pass {pass_index} holds inputs that differ from the crops made here",
                        hint="another builder's images or image libraries differ; it has to finish that unit",
                    )
            records[name] = ObjectRecord.of(stands)
        commit = Commit(
            pass_index=pass_index,
            unit=unit,
            entries=n,
            calibration=self.calibration.digest,
            objects=records,
            built=dict(built),
        )
        where = _commit_path(pass_index, unit, commit.generation)
        return read_commit(self.objects.put_same(where, commit.to_bytes()), where)

    def committed_units(self, pass_index: int) -> set[int]:
        """Units with a commit record, by one listing."""
        return set(self._newest_records(pass_index))

    def commits(self, pass_index: int) -> dict[int, Commit]:
        """The record of the highest generation of every committed unit."""
        newest = self._newest_records(pass_index)
        return {unit: self._read_commit(path, pass_index, unit) for unit, path in newest.items()}

    def commit_of(self, pass_index: int, unit: int) -> Commit:
        """One of `commits`. Raises KeyError for a unit that is not committed."""
        return self._read_commit(self._newest_records(pass_index)[unit], pass_index, unit)

    def finish_pass(self, pass_index: int) -> Manifest | None:
        """Put the pass's manifest once all its units are committed; None before that."""
        units = range(self.spec.units_per_pass)
        if self.committed_units(pass_index) < set(units):
            return None
        commits = self.commits(pass_index)
        manifest = Manifest(pass_index=pass_index, commits=tuple(commits[unit] for unit in units))
        generation = max(commit.generation for commit in manifest.commits)
        self.objects.put_new(f"{_ledger_folder(pass_index)}/manifest-{generation}.json", manifest.to_bytes())
        return manifest

    def manifest(self, pass_index: int) -> Manifest | None:
        """The manifest of the highest generation; None for a pass that is not complete."""
        folder = _ledger_folder(pass_index)
        names = [name for name in self.objects.names(folder) if name.startswith("manifest-")]
        if not names:
            return None
        newest = max(names, key=lambda name: int(name.removesuffix(".json").split("-")[1]))
        manifest = read_manifest(require_object(self.objects, f"{folder}/{newest}"), f"{folder}/{newest}")
        if len(manifest.commits) != self.spec.units_per_pass:
            raise StoreDamagedError(
                f"{folder}/{newest} lists {len(manifest.commits)} units, the pass has {self.spec.units_per_pass}"
            )
        for unit, commit in enumerate(manifest.commits):
            self._check_commit(commit, pass_index, unit)
        return manifest

    def begun_passes(self) -> list[int]:
        return [int(name) for name in self.objects.names("kd/passes")]

    def complete_passes(self) -> list[int]:
        """Passes with a manifest, in order."""
        return [
            index
            for index in self.begun_passes()
            if any(name.startswith("manifest-") for name in self.objects.names(_ledger_folder(index)))
        ]

    @property
    def is_complete(self) -> bool:
        """Whether every pass of the largest goal is complete."""
        return self.goal > 0 and set(range(self.goal)) <= set(self.complete_passes())

    def _newest_records(self, pass_index: int) -> dict[int, str]:
        folder = f"{_ledger_folder(pass_index)}/units"
        generations: dict[int, int] = {}
        for name in self.objects.names(folder):
            unit, generation = (int(number) for number in name.removesuffix(".json").split("-"))
            generations[unit] = max(generation, generations.get(unit, 0))
        return {
            unit: _commit_path(pass_index, unit, generation)
            for unit, generation in sorted(generations.items())
        }

    def _put_metadata(self, path: str, data: bytes) -> None:
        stands = self.objects.put_same(path, data)
        if stands != data and not same_metadata(stands, data):
            raise StoreDamagedError(f"{redact(self.url)}/{path} is not the metadata that the spec leads to")

    def _read_commit(self, path: str, pass_index: int, unit: int) -> Commit:
        commit = read_commit(require_object(self.objects, path), path)
        self._check_commit(commit, pass_index, unit)
        return commit

    def _check_commit(self, commit: Commit, pass_index: int, unit: int) -> None:
        expected = (pass_index, unit, len(self.spec.unit_rows(unit)), self.calibration.digest)
        found = (commit.pass_index, commit.unit, commit.entries, commit.calibration)
        if found != expected or set(commit.objects) != {VIEWS, *self.spec.targets}:
            raise StoreDamagedError(
                f"the commit of unit {unit} of pass {pass_index} belongs to something else"
            )


def create_store(url: str, spec: StoreSpec, image_ids: tuple[str, ...]) -> Store:
    """Begin the store of `spec` at `url`, or open the one that stands there.

    Raises:
        StoreMismatchError: the store at `url` has another spec; the message lists the fields that differ.
    """
    assert len(image_ids) == spec.dataset.images
    objects = open_objects(url)
    if "spec.json" not in objects.names("kd"):
        objects.put_new(IMAGES, canonical_json(list(image_ids)))
        objects.put_new("zarr.json", group_metadata({"kdcache": {"key": spec.key}}))
        objects.put_new(SPEC, canonical_json(spec.to_dict()))  # last: a store exists once its spec does
    store = open_store(url)
    if store.spec.key != spec.key:
        lines = "\n  ".join(store.spec.differences(spec))
        raise StoreMismatchError(
            f"{redact(url)} is another store; differing fields (store, asked):\n  {lines}",
            hint="leave out --store to have the store named by its spec, or name another folder",
        )
    return store


def open_store(url: str) -> Store:
    """The store at `url`. Raises StoreNotFoundError where there is none, StoreDamagedError where it cannot be read."""
    objects = open_objects(url)
    try:
        spec = StoreSpec.from_dict(_parse(objects.get(SPEC), SPEC, dict))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(
            f"no store at {redact(url)} (looked for {SPEC})", hint="`kdcache ls` lists the stores of the home"
        ) from None
    image_ids = _parse(require_object(objects, IMAGES), IMAGES, list)
    if len(image_ids) != spec.dataset.images:
        raise StoreDamagedError(
            f"{redact(url)}/{IMAGES} does not list the {spec.dataset.images} images of the spec"
        )
    return Store(url, objects, spec, tuple(str(i) for i in image_ids))


def list_stores(home: str) -> list[Store]:
    """All stores directly under `home`, by name; folders that hold none are passed over."""
    stores = []
    for name in open_objects(home).names(""):
        try:
            stores.append(open_store(join_url(home, name)))
        except StoreNotFoundError:
            continue
    return stores


def _pass_folder(pass_index: int) -> str:
    return f"passes/{pass_index:03d}"


def _ledger_folder(pass_index: int) -> str:
    return f"kd/passes/{pass_index:03d}"


def _commit_path(pass_index: int, unit: int, generation: int) -> str:
    return f"{_ledger_folder(pass_index)}/units/{unit:06d}-{generation}.json"


def _parse(data: bytes, where: str, kind: type[_Document]) -> _Document:
    try:
        document = json.loads(data)
    except ValueError:
        raise StoreDamagedError(f"{where} is not JSON") from None
    if not isinstance(document, kind):
        raise StoreDamagedError(f"{where} is not a JSON {kind.__name__}")
    return document
