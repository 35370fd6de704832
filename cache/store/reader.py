"""The reader: single entries from sharded Zarr v3 arrays, read by position, with little between it and the bytes.

zarr-python reads a shard's index again for every entry. Here it is read once, checked and kept, so that an entry of an
array costs one read, one checksum and one decompression into its final place. Reading and decompression run without the
GIL; decompression takes about nine tenths of the time. The reader accepts what shards.py writes and nothing else.

A store on another host is read through a cache, if one is given. Then shards are fetched whole.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from kdcache.cache.codecs.codec import Codec
from kdcache.cache.codecs.shards import EMPTY, ArrayLayout
from kdcache.cache.errors import IncompleteError, StoreDamagedError, StoreMismatchError
from kdcache.cache.storage.documents import parse_json, require_document
from kdcache.cache.storage.local import LocalObjects
from kdcache.cache.storage.objects import ByteRange, Objects
from kdcache.cache.storage.shard_cache import CachedShards, ShardCache
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.ledger import Manifest
from kdcache.cache.store.opening import open_store
from kdcache.cache.store.spec import VIEWS, StoreSpec
from kdcache.cache.store.store import Store, array_path
from kdcache.cache.views.crops import CROPS, LABELS, REPLAY, unpack_crop
from kdcache.cache.views.replay import Crop, EntryRow, parse_entry_row


@dataclass(frozen=True, slots=True)
class Entry:
    """One view and its targets, still encoded."""

    row: EntryRow
    codes: dict[str, np.ndarray]  # by target: as Codec.encode returns them, without the first axis
    crop: Crop | None = None  # if the store keeps crops and the reader was opened for them


class StoreReader:
    """Random access to the entries of a store's complete passes.

    Its pickle, for worker processes, is small: it contains the sizes of shards (and their digests, if there is a
    cache), but neither `manifests` nor the store.

    Raises:
        StoreMismatchError: the store, or this copy of it, does not contain one of `targets`.
        IncompleteError: no pass of the store is complete yet.
    """

    def __init__(
        self,
        url: str,
        targets: Sequence[str] = (),
        *,
        crops: bool = False,  # return entries with their crops, if the store keeps crops
        cache: ShardCache | None = None,  # used if the store is not on this host
    ) -> None:
        self.url = url
        self.targets = tuple(targets)
        store = self._store = open_store(url)
        self.has_crops = crops and store.spec.inputs != REPLAY
        missing = [name for name in targets if name not in store.spec.targets]
        if missing:
            raise StoreMismatchError(
                f"{redact(url)} contains {', '.join(store.spec.targets)}, not {', '.join(missing)}",
                hint=f"build a store that does, with your other options: {_build_command(store.spec, missing)}",
            )
        self.spec: StoreSpec = store.spec
        self.image_ids = store.image_ids
        self.cached: CachedShards | None = None
        if cache is not None and not isinstance(store.objects, LocalObjects):
            self.cached = CachedShards(store.objects, cache)
        passes = self.complete_passes()
        if not passes and store.complete_passes():  # complete, but this copy lacks an array
            lacking = [name for name in targets if not store.complete_passes([name])] or targets
            raise StoreMismatchError(
                f"this copy of the store, {redact(url)}, does not contain {', '.join(lacking)}",
                hint=f"copy the missing arrays from the original: kdcache pull URL --targets {','.join(lacking)}",
            )
        if not passes:
            raise IncompleteError(
                f"{redact(url)} has no complete pass yet",
                hint="run its `kdcache build` again: it continues after the last committed unit",
            )
        self.codecs: dict[str, Codec] = {name: store.calibration.codecs[name] for name in targets}
        self.manifests: dict[int, Manifest] = {}
        self._arrays: dict[int, dict[str, ShardedArray]] = {}
        for index in passes:
            self.open_pass(index)

    def open_pass(self, pass_index: int) -> None:
        """Also read from this complete pass. A pass that is open stays as it was opened. Raises IncompleteError."""
        if pass_index in self._arrays:
            return
        manifest = self._store.manifest(pass_index)
        if manifest is None:
            raise IncompleteError(f"pass {pass_index} of {redact(self.url)} is not complete")
        self.manifests[pass_index] = manifest
        self._arrays[pass_index] = self._open_arrays(self._store, pass_index)

    def complete_passes(self) -> list[int]:
        """All passes that the store has by now with the arrays that are read, in order. `passes` are the open ones."""
        return self._store.complete_passes((*self._inputs, *self.targets))

    def require_unchanged(self, pass_index: int) -> None:
        """Raises StoreDamagedError if a pass was repaired or removed after it was opened."""
        manifest = self._store.manifest(pass_index)
        if manifest is None or manifest.digest != self.manifests[pass_index].digest:
            raise StoreDamagedError(
                f"pass {pass_index} of {redact(self.url)} was repaired or removed after it was opened",
                hint="start another run in a new folder",
            )

    def shards(self, pass_index: int, unit: int) -> list[str]:
        """Paths of the shards that contain a unit's entries."""
        return [array.shard_path(unit) for array in self._arrays[pass_index].values()]

    def unit_bytes(self) -> int:
        """Stored bytes of the largest unit, counting the arrays that are read."""
        sizes = [[array.shard_sizes for array in arrays.values()] for arrays in self._arrays.values()]
        return int(np.sum(sizes, axis=1).max())

    @property
    def passes(self) -> tuple[int, ...]:
        """The passes that are open, in order."""
        return tuple(sorted(self._arrays))

    @property
    def n_images(self) -> int:
        return self.spec.dataset.images

    @property
    def unit_entries(self) -> int:
        return self.spec.unit_entries

    @property
    def _inputs(self) -> tuple[str, ...]:
        """The arrays of inputs that this reader reads."""
        return tuple(self.spec.input_packings) if self.has_crops else (VIEWS,)

    def entry(self, pass_index: int, position: int) -> Entry:
        """The entry at `position` of a complete pass. Raises StoreDamagedError if any byte of it is wrong."""
        return self.entries(pass_index, [position])[0]

    def entries(self, pass_index: int, positions: Sequence[int]) -> list[Entry]:
        """Several entries of one pass, in the order of `positions`; their reads overlap. Raises as `entry`."""
        arrays = self._arrays[pass_index]
        names = (*self._inputs, *self.targets)
        rows = dict(zip(names, read_rows([arrays[name] for name in names], positions), strict=True))
        return [
            self._entry(arrays, position, {name: rows[name][i] for name in names})
            for i, position in enumerate(positions)
        ]

    def rows(self, pass_index: int) -> np.ndarray:
        """The rows of views of a whole pass, (n_images, columns) int32, see replay.ENTRY_COLUMNS."""
        views = self._arrays[pass_index][VIEWS]
        return np.concatenate([views.unit(unit) for unit in range(len(views.shard_sizes))])

    def _entry(
        self, arrays: Mapping[str, "ShardedArray"], position: int, rows: Mapping[str, np.ndarray]
    ) -> Entry:
        where = f"{arrays[VIEWS].path}: entry {position}"
        row = require_row_of(self.spec, rows[VIEWS], where)
        codes = {name: self._codes(arrays[name], position, rows[name]) for name in self.targets}
        crop = None
        if self.has_crops:
            crop = read_crop(self.spec, rows, row, f"{arrays[CROPS].path}: entry {position}")
        return Entry(row, codes, crop)

    def _codes(self, array: "ShardedArray", position: int, row: np.ndarray) -> np.ndarray:
        """The codes of an entry, from its stored row."""
        try:
            return self.codecs[array.layout.name].unpack(row)
        except ValueError as error:
            raise StoreDamagedError(f"{array.path}: entry {position} does not unpack: {error}") from None

    def _open_arrays(self, store: Store, pass_index: int) -> dict[str, "ShardedArray"]:
        arrays = {}
        layouts = store.layouts(pass_index)
        for name in (*self._inputs, *self.targets):
            check_metadata(store, pass_index, name, layouts[name])
            records = [commit.objects[name] for commit in self.manifests[pass_index].commits]
            sizes = np.array([record.size for record in records])
            path = array_path(pass_index, name)
            array = arrays[name] = ShardedArray(self.cached or store.objects, layouts[name], sizes, path)
            if self.cached is not None:
                self.cached.records |= {array.shard_path(unit): record for unit, record in enumerate(records)}
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        # A manifest lists thousands of units, and workers read entries only.
        return {**self.__dict__, "manifests": {}, "_store": None}


def _build_command(spec: StoreSpec, missing: Sequence[str]) -> str:
    """The command that builds a store like that of `spec` with more targets."""
    targets = ",".join(dict.fromkeys([*spec.targets, *missing]))
    return (
        f"kdcache build --dataset {spec.dataset.name} --split {spec.dataset.split} "
        f"--teacher {spec.teacher['name']} --targets {targets}"
    )


class ShardedArray:
    """The rows of one array of one pass."""

    def __init__(
        self,
        objects: Objects | CachedShards,
        layout: ArrayLayout,
        shard_sizes: np.ndarray,  # (units,) bytes, from the ledger
        path: str,
    ) -> None:
        self.objects = objects
        self.layout = layout
        self.shard_sizes = shard_sizes
        self.path = path
        self.indexes: dict[int, np.ndarray] = {}
        """By unit: offsets and sizes of its rows in bytes, (unit_entries, 2) uint64."""

    def row(self, position: int) -> np.ndarray:
        """The row at `position`, of the layout's row shape and dtype."""
        (rows,) = read_rows([self], [position])
        return rows[0]  # type: ignore[no-any-return] # numpy has no type for a row

    def unit(self, unit: int) -> np.ndarray:
        """All rows of a unit, (n, *row_shape), from one read of its whole shard."""
        start = unit * self.layout.unit_entries
        n = min(self.layout.unit_entries, self.layout.rows - start)
        path = self.shard_path(unit)
        # One byte more than recorded shows a shard that is too long.
        (shard,) = _read([ByteRange(path, 0, int(self.shard_sizes[unit]) + 1)], [self])
        if len(shard) != self.shard_sizes[unit]:
            raise StoreDamagedError(f"{path} does not have the size that the ledger records")
        return self.layout.decode(shard, n)

    def index_range(self, unit: int) -> ByteRange:
        """The bytes of the index of a unit's shard, which are the last ones."""
        size = self.layout.index_bytes
        return ByteRange(self.shard_path(unit), max(0, int(self.shard_sizes[unit]) - size), size)

    def keep_index(self, unit: int, tail: bytes) -> None:
        """Check the bytes of `index_range` and keep the index."""
        self.indexes[unit] = self.layout.read_index(tail, int(self.shard_sizes[unit]), self.shard_path(unit))

    def row_range(self, position: int) -> ByteRange:
        """The bytes of a row. The index of its shard must have been kept before."""
        unit, row = divmod(position, self.layout.unit_entries)
        offset, size = self.indexes[unit][row].tolist()
        path = self.shard_path(unit)
        if offset == EMPTY:
            raise StoreDamagedError(f"{path}: entry {row} is missing")
        return ByteRange(path, offset, size)

    def shard_path(self, unit: int) -> str:
        """Path of a unit's shard in the store."""
        return f"{self.path}/{self.layout.shard_path(unit)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "indexes": {}}  # a worker reads the indexes that it needs


def read_rows(
    arrays: Sequence[ShardedArray],  # of one store
    positions: Sequence[int],
) -> list[np.ndarray]:
    """The rows at `positions` of every array, (n, *row_shape) each. Two rounds of reads: new indexes, then rows.

    Raises:
        StoreDamagedError: a shard is missing, or a row of it is missing or wrong.
    """
    objects = arrays[0].objects
    if not isinstance(objects, CachedShards):
        return _read_rows(arrays, positions)
    shards = set(product(arrays, (position // arrays[0].layout.unit_entries for position in positions)))
    paths = [array.shard_path(unit) for array, unit in shards]
    for path in paths:
        objects.fetch(path)
    try:
        return _read_rows(arrays, positions)
    except StoreDamagedError:
        # The bytes were right when they were cached, so this disk has lost them, not the store: fetch them once more.
        objects.discard(paths)
        for array, unit in shards:
            array.indexes.pop(unit, None)
        return _read_rows(arrays, positions)


def _read_rows(arrays: Sequence[ShardedArray], positions: Sequence[int]) -> list[np.ndarray]:
    rows_to_read = [(array, position) for array in arrays for position in positions]
    shards = dict.fromkeys((array, position // array.layout.unit_entries) for array, position in rows_to_read)
    new = [(array, unit) for array, unit in shards if unit not in array.indexes]
    for (array, unit), tail in zip(new, _read([a.index_range(unit) for a, unit in new], arrays), strict=True):
        array.keep_index(unit, tail)
    ranges = [array.row_range(position) for array, position in rows_to_read]
    batches = [array.layout.empty_rows(len(positions)) for array in arrays]
    rows = (row for batch in batches for row in batch)
    packed = _read(ranges, arrays)
    for (array, position), where, data, row in zip(rows_to_read, ranges, packed, rows, strict=True):
        array.layout.unpack(data, row, f"{where.path}: entry {position % array.layout.unit_entries}")
    return batches


def _read(ranges: Sequence[ByteRange], arrays: Sequence[ShardedArray]) -> list[bytes]:
    try:
        return arrays[0].objects.read_ranges(ranges) if ranges else []
    except FileNotFoundError as error:
        raise StoreDamagedError(
            f"{error} is missing",
            hint=f"restore it from a copy, or run `kdcache verify {arrays[0].objects.url} --repair`",
        ) from None


def require_row_of(spec: StoreSpec, row: np.ndarray, where: str) -> EntryRow:
    """The parsed row of views. Raises StoreDamagedError, which names `where`, if no entry of the store can have it."""
    entry = parse_entry_row(row)
    height, width = spec.views.crop_size
    if entry.image_index >= spec.dataset.images or entry.view.height > height or entry.view.width > width:
        raise StoreDamagedError(
            f"{where} is view {entry.view.height}x{entry.view.width} of image {entry.image_index}: "
            f"the store has {spec.dataset.images} images and crops of {height}x{width}"
        )
    return entry


def read_crop(spec: StoreSpec, rows: Mapping[str, np.ndarray], entry: EntryRow, where: str) -> Crop:
    """The stored crop of an entry. Raises StoreDamagedError, which names `where`."""
    crop = unpack_crop(rows[CROPS], rows[LABELS], (entry.view.height, entry.view.width), where)
    classes = len(spec.dataset.class_names)
    if (largest := int((crop.label + np.uint8(1)).max())) > classes:  # void is 255, and wraps to 0
        raise StoreDamagedError(f"{where} has label {largest - 1}, but there are only {classes} classes")
    return crop


def check_metadata(store: Store, pass_index: int, name: str, layout: ArrayLayout) -> None:
    """Raises StoreDamagedError if an array's Zarr metadata differs from what the spec and the calibration imply."""
    path = f"{array_path(pass_index, name)}/zarr.json"
    stored = parse_json(require_document(store.objects, path), path, dict)
    expected: dict[str, Any] = json.loads(layout.metadata())
    for key in ("shape", "data_type", "chunk_grid", "codecs"):
        if stored.get(key) != expected[key]:
            raise StoreDamagedError(
                f"{redact(store.url)}: array {name} of pass {pass_index} has another {key} than its spec implies",
                hint=f"`kdcache verify {redact(store.url)} --repair` writes it again",
            )


def requests_of_a_pass(spec: StoreSpec, targets: Sequence[str]) -> int:
    """GET requests to a bucket with which a cache fetches one pass: one for every unit and array that is read."""
    return (len(spec.input_packings) + len(targets)) * spec.units_per_pass
