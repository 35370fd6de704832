"""The reader: single entries out of sharded Zarr v3 arrays by positional reads, a thin layer over what the standard says.

zarr-python reads a shard's index again for every entry; here it is read once, checked and kept, so that an entry of an
array is one read, one checksum and one decompression to where it stays. Reading and decompression run outside the GIL;
decompression is some nine tenths of the time. It reads what `shards` writes and refuses anything else.

A store that is not on this host is read by way of a cache, where one is given: then shards are fetched whole.
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
    """One view and its targets, still in codes."""

    row: EntryRow
    codes: dict[str, np.ndarray]  # by target, as Codec.encode gives them, without the first axis
    crop: Crop | None = None  # where the store keeps it and the reader was opened for crops


class StoreReader:
    """Random access to the entries of a store's complete passes.

    Pickles small, for worker processes: sizes of shards (and their digests, where a cache goes by them), but neither
    `manifests` nor the store, which stay where it was opened.

    Raises:
        StoreMismatchError: the store does not hold one of `targets`, or this copy of it does not.
        IncompleteError: no pass of the store is complete yet.
    """

    def __init__(
        self,
        url: str,
        targets: Sequence[str] = (),
        *,
        crops: bool = False,  # entries come with their crops, where the store keeps them
        cache: ShardCache | None = None,  # for a store that is not on this host
    ) -> None:
        self.url = url
        self.targets = tuple(targets)
        store = self._store = open_store(url)
        self.has_crops = crops and store.spec.inputs != REPLAY
        missing = [name for name in targets if name not in store.spec.targets]
        if missing:
            raise StoreMismatchError(
                f"{redact(url)} holds {', '.join(store.spec.targets)}, not {', '.join(missing)}",
                hint=f"{_build_command(store.spec, missing)} builds one that does; its other options as for this one",
            )
        self.spec: StoreSpec = store.spec
        self.image_ids = store.image_ids
        self.cached: CachedShards | None = None
        if cache is not None and not isinstance(store.objects, LocalObjects):
            self.cached = CachedShards(store.objects, cache)
        passes = self.complete_passes()
        if not passes and store.complete_passes():
            lacking = [name for name in targets if not store.complete_passes([name])] or targets
            raise StoreMismatchError(
                f"this copy of the store, {redact(url)}, is without {', '.join(lacking)}",
                hint="kdcache pull URL --targets NAME,... from where it was copied completes it",
            )
        if not passes:
            raise IncompleteError(
                f"{redact(url)} has no complete pass yet",
                hint="run its `kdcache build` again: it goes on where it was",
            )
        self.codecs: dict[str, Codec] = {name: store.calibration.codecs[name] for name in targets}
        self.manifests: dict[int, Manifest] = {}
        self._arrays: dict[int, dict[str, ShardedArray]] = {}
        for index in passes:
            self.open_pass(index)

    def open_pass(self, pass_index: int) -> None:
        """Read from a complete pass too; one that is open stays as it was opened. Raises IncompleteError."""
        if pass_index in self._arrays:
            return
        manifest = self._store.manifest(pass_index)
        if manifest is None:
            raise IncompleteError(f"pass {pass_index} of {redact(self.url)} is not complete")
        self.manifests[pass_index] = manifest
        self._arrays[pass_index] = self._open_arrays(self._store, pass_index)

    def complete_passes(self) -> list[int]:
        """All that the store has by now with the arrays that are read, in order; those of `passes` are open."""
        return self._store.complete_passes((*self._inputs, *self.targets))

    def require_unchanged(self, pass_index: int) -> None:
        """Raises StoreDamagedError where a pass was repaired, or is gone, since it was opened."""
        manifest = self._store.manifest(pass_index)
        if manifest is None or manifest.digest != self.manifests[pass_index].digest:
            raise StoreDamagedError(
                f"pass {pass_index} of {redact(self.url)} was repaired or is gone since it was opened",
                hint="begin another run in a new folder",
            )

    def shards(self, pass_index: int, unit: int) -> list[str]:
        """Paths of the shards that a unit's entries are read from."""
        return [array.shard_path(unit) for array in self._arrays[pass_index].values()]

    def unit_bytes(self) -> int:
        """Of the largest unit: what is read of it, as stored."""
        sizes = [[array.shard_sizes for array in arrays.values()] for arrays in self._arrays.values()]
        return int(np.sum(sizes, axis=1).max())

    @property
    def passes(self) -> tuple[int, ...]:
        """Those that are open, in order."""
        return tuple(sorted(self._arrays))

    @property
    def n_images(self) -> int:
        return self.spec.dataset.images

    @property
    def unit_entries(self) -> int:
        return self.spec.unit_entries

    @property
    def _inputs(self) -> tuple[str, ...]:
        """The arrays of inputs that are read."""
        return tuple(self.spec.input_packings) if self.has_crops else (VIEWS,)

    def entry(self, pass_index: int, position: int) -> Entry:
        """The entry at `position` of a complete pass. Raises StoreDamagedError when a byte of it is wrong."""
        return self.entries(pass_index, [position])[0]

    def entries(self, pass_index: int, positions: Sequence[int]) -> list[Entry]:
        """Several entries of one pass, in the order asked; the waits for their bytes overlap. Raises as `entry`."""
        arrays = self._arrays[pass_index]
        names = (*self._inputs, *self.targets)
        rows = dict(zip(names, read_rows([arrays[name] for name in names], positions), strict=True))
        return [
            self._entry(arrays, position, {name: rows[name][i] for name in names})
            for i, position in enumerate(positions)
        ]

    def rows(self, pass_index: int) -> np.ndarray:
        """The inputs of a whole pass, (n_images, columns) int32, see replay.ENTRY_COLUMNS."""
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
        """An entry's codes out of its stored row."""
        try:
            return self.codecs[array.layout.name].unpack(row)
        except ValueError as error:
            raise StoreDamagedError(f"{array.path}: entry {position} cannot be unpacked: {error}") from None

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
        return {**self.__dict__, "manifests": {}, "_store": None}


def _build_command(spec: StoreSpec, missing: Sequence[str]) -> str:
    """What builds a store like that of `spec` with more targets."""
    targets = ",".join(dict.fromkeys([*spec.targets, *missing]))
    return (
        f"kdcache build --dataset {spec.dataset.name} --split {spec.dataset.split} "
        f"--teacher {spec.teacher['name']} --targets {targets}"
    )


class ShardedArray:
    """Rows of one array of one pass."""

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
        """By unit, (unit_entries, 2) uint64: offsets and sizes of its rows."""

    def row(self, position: int) -> np.ndarray:
        """Row `position`, of the layout's row shape and dtype."""
        (rows,) = read_rows([self], [position])
        return rows[0]  # type: ignore[no-any-return] # numpy has no type for a row

    def unit(self, unit: int) -> np.ndarray:
        """All rows of a unit, (n, *row_shape), by reading its shard whole."""
        start = unit * self.layout.unit_entries
        n = min(self.layout.unit_entries, self.layout.rows - start)
        path = self.shard_path(unit)
        (shard,) = _read([ByteRange(path, 0, int(self.shard_sizes[unit]) + 1)], [self])
        if len(shard) != self.shard_sizes[unit]:
            raise StoreDamagedError(f"{path} is not of the size that the ledger says")
        return self.layout.decode(shard, n)

    def index_range(self, unit: int) -> ByteRange:
        """Where the index of a unit's shard stands: at its end."""
        size = self.layout.index_bytes
        return ByteRange(self.shard_path(unit), max(0, int(self.shard_sizes[unit]) - size), size)

    def keep_index(self, unit: int, tail: bytes) -> None:
        """Take the bytes of `index_range`, checked, for good."""
        self.indexes[unit] = self.layout.read_index(tail, int(self.shard_sizes[unit]), self.shard_path(unit))

    def row_range(self, position: int) -> ByteRange:
        """Where a row's bytes stand; the index of its shard must be at hand."""
        unit, place = divmod(position, self.layout.unit_entries)
        offset, size = self.indexes[unit][place].tolist()
        path = self.shard_path(unit)
        if offset == EMPTY:
            raise StoreDamagedError(f"{path}: entry {place} is missing")
        return ByteRange(path, offset, size)

    def shard_path(self, unit: int) -> str:
        """Where a unit's shard stands in the store."""
        return f"{self.path}/{self.layout.shard_path(unit)}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "indexes": {}}


def read_rows(
    arrays: Sequence[ShardedArray],  # of one store
    positions: Sequence[int],
) -> list[np.ndarray]:
    """The rows at `positions` of every array, (n, *row_shape) each: two rounds of reads, the first for new shards alone.

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
        # What the cache holds was right when it came in: a disk that lost it since is no damage of the store's.
        objects.discard(paths)
        for array, unit in shards:
            array.indexes.pop(unit, None)
        return _read_rows(arrays, positions)


def _read_rows(arrays: Sequence[ShardedArray], positions: Sequence[int]) -> list[np.ndarray]:
    wanted = [(array, position) for array in arrays for position in positions]
    shards = dict.fromkeys((array, position // array.layout.unit_entries) for array, position in wanted)
    new = [(array, unit) for array, unit in shards if unit not in array.indexes]
    for (array, unit), tail in zip(new, _read([a.index_range(unit) for a, unit in new], arrays), strict=True):
        array.keep_index(unit, tail)
    ranges = [array.row_range(position) for array, position in wanted]
    batches = [array.layout.empty_rows(len(positions)) for array in arrays]
    rows = (row for batch in batches for row in batch)
    packed = _read(ranges, arrays)
    for (array, position), where, data, row in zip(wanted, ranges, packed, rows, strict=True):
        array.layout.unpack(data, row, f"{where.path}: entry {position % array.layout.unit_entries}")
    return batches


def _read(ranges: Sequence[ByteRange], arrays: Sequence[ShardedArray]) -> list[bytes]:
    try:
        return arrays[0].objects.read_ranges(ranges) if ranges else []
    except FileNotFoundError as error:
        raise StoreDamagedError(
            f"{error} is missing",
            hint="the ledger lists it: restore it from a copy, or make it again by kdcache verify --repair",
        ) from None


def require_row_of(spec: StoreSpec, row: np.ndarray, where: str) -> EntryRow:
    """A row of views, parsed. Raises StoreDamagedError, naming `where`, for one that no entry of the store has."""
    entry = parse_entry_row(row)
    height, width = spec.views.crop_size
    if entry.image_index >= spec.dataset.images or entry.view.height > height or entry.view.width > width:
        raise StoreDamagedError(
            f"{where} is view {entry.view.height}x{entry.view.width} of image {entry.image_index}: "
            f"the store has {spec.dataset.images} images and crops of {height}x{width}"
        )
    return entry


def read_crop(spec: StoreSpec, rows: Mapping[str, np.ndarray], entry: EntryRow, where: str) -> Crop:
    """The stored crop of an entry. Raises StoreDamagedError, naming `where`."""
    crop = unpack_crop(rows[CROPS], rows[LABELS], (entry.view.height, entry.view.width), where)
    classes = len(spec.dataset.class_names)
    if (largest := int((crop.label + np.uint8(1)).max())) > classes:  # void is 255, and wraps to 0
        raise StoreDamagedError(f"{where} is labelled {largest - 1}, of {classes} classes")
    return crop


def check_metadata(store: Store, pass_index: int, name: str, layout: ArrayLayout) -> None:
    """Refuse an array whose Zarr metadata is not what the spec and the calibration lead to."""
    path = f"{array_path(pass_index, name)}/zarr.json"
    stored = parse_json(require_document(store.objects, path), path, dict)
    expected: dict[str, Any] = json.loads(layout.metadata())
    for key in ("shape", "data_type", "chunk_grid", "codecs"):
        if stored.get(key) != expected[key]:
            raise StoreDamagedError(
                f"{redact(store.url)}: array {name} of pass {pass_index} has another {key}",
                hint="kdcache verify --repair writes it again",
            )


def requests_of_a_pass(spec: StoreSpec, targets: Sequence[str]) -> int:
    """Objects, whose GETs a bucket counts, that a cache fetches of a pass: one for every unit and array that is read."""
    return (len(spec.input_packings) + len(targets)) * spec.units_per_pass
