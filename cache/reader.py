"""The reader: single entries out of sharded Zarr v3 arrays by positional reads, a thin layer over what the standard says.

zarr-python reads a shard's index again for every entry; here it is read once, checked and kept, so that an entry of an
array is one read, one checksum and one decompression to where it stays. Reading and decompression run outside the GIL;
decompression is some nine tenths of the time. It reads what `shards` writes and refuses anything else.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcache.cache.codec import Codec
from kdcache.cache.crops import CROPS, LABELS, REPLAY, unpack_crop
from kdcache.cache.errors import IncompleteError, StoreDamagedError, StoreMismatchError
from kdcache.cache.ledger import Manifest
from kdcache.cache.objects import ByteRange, Objects, redact, require_object
from kdcache.cache.replay import Crop, EntryRow, parse_entry_row
from kdcache.cache.shards import EMPTY, ArrayLayout
from kdcache.cache.spec import VIEWS, StoreSpec
from kdcache.cache.store import Store, array_path, open_store, parse_json


@dataclass(frozen=True, slots=True)
class Entry:
    """One view and its targets, still in codes."""

    row: EntryRow
    codes: dict[str, np.ndarray]  # by target, as Codec.encode gives them, without the first axis
    crop: Crop | None = None  # where the store keeps it and the reader was opened for crops


class StoreReader:
    """Random access to the entries of a store's complete passes.

    Pickles small, for worker processes: sizes of shards, but not `manifests`, which stay where it was opened.

    Raises:
        StoreMismatchError: the store does not hold one of `targets`, or this copy of it does not.
        IncompleteError: no pass of the store is complete yet.
    """

    def __init__(self, url: str, targets: Sequence[str] = (), *, crops: bool = False) -> None:
        """`crops`: entries come with their crops, where the store keeps them."""
        self.url = url
        self.targets = tuple(targets)
        store = open_store(url)
        self.has_crops = crops and store.spec.inputs != REPLAY
        missing = [name for name in targets if name not in store.spec.targets]
        if missing:
            raise StoreMismatchError(
                f"{redact(url)} holds {', '.join(store.spec.targets)}, not {', '.join(missing)}",
                hint=f"{_build_command(store.spec, missing)} builds one that does; its other options as for this one",
            )
        self.spec: StoreSpec = store.spec
        self.image_ids = store.image_ids
        self.passes = tuple(store.complete_passes((*self._inputs, *targets)))
        if not self.passes and store.complete_passes():
            lacking = [name for name in targets if not store.complete_passes([name])] or targets
            raise StoreMismatchError(
                f"this copy of the store, {redact(url)}, is without {', '.join(lacking)}",
                hint="kdcache pull URL --targets NAME,... from where it was copied completes it",
            )
        if not self.passes:
            raise IncompleteError(
                f"{redact(url)} has no complete pass yet",
                hint="run its `kdcache build` again: it goes on where it was",
            )
        self.codecs: dict[str, Codec] = {name: store.calibration.codecs[name] for name in targets}
        manifests = {index: store.manifest(index) for index in self.passes}
        self.manifests: dict[int, Manifest] = {index: m for index, m in manifests.items() if m is not None}
        self._arrays = {index: self._open_arrays(store, index) for index in self.passes}

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
        """The inputs of a whole pass, (n_images, columns) int32, see views.ENTRY_COLUMNS."""
        views = self._arrays[pass_index][VIEWS]
        return np.concatenate([views.unit(unit) for unit in range(len(views.shard_sizes))])

    def _entry(
        self, arrays: Mapping[str, "ShardedArray"], position: int, rows: Mapping[str, np.ndarray]
    ) -> Entry:
        row = parse_entry_row(rows[VIEWS])
        codes = {name: self._codes(arrays[name], position, rows[name]) for name in self.targets}
        crop = None
        if self.has_crops:
            where = f"{arrays[CROPS].path}: entry {position}"
            crop = unpack_crop(rows[CROPS], rows[LABELS], (row.view.height, row.view.width), where)
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
            sizes = np.array([commit.objects[name].size for commit in self.manifests[pass_index].commits])
            arrays[name] = ShardedArray(store.objects, layouts[name], sizes, array_path(pass_index, name))
        return arrays

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "manifests": {}}


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
        objects: Objects,
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
        return self.layout.decode(require_object(self.objects, self._shard_path(unit)), n)

    def index_range(self, unit: int) -> ByteRange:
        """Where the index of a unit's shard stands: at its end."""
        size = self.layout.index_bytes
        return ByteRange(self._shard_path(unit), max(0, int(self.shard_sizes[unit]) - size), size)

    def keep_index(self, unit: int, tail: bytes) -> None:
        """Take the bytes of `index_range`, checked, for good."""
        self.indexes[unit] = self.layout.read_index(tail, int(self.shard_sizes[unit]), self._shard_path(unit))

    def row_range(self, position: int) -> ByteRange:
        """Where a row's bytes stand; the index of its shard must be at hand."""
        unit, place = divmod(position, self.layout.unit_entries)
        offset, size = self.indexes[unit][place].tolist()
        path = self._shard_path(unit)
        if offset == EMPTY:
            raise StoreDamagedError(f"{path}: entry {place} is missing")
        return ByteRange(path, offset, size)

    def _shard_path(self, unit: int) -> str:
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
            f"{error} is missing", hint="the ledger lists it: restore it from a copy"
        ) from None


def check_metadata(store: Store, pass_index: int, name: str, layout: ArrayLayout) -> None:
    """Refuse an array whose Zarr metadata is not what the spec and the calibration lead to."""
    path = f"{array_path(pass_index, name)}/zarr.json"
    stored = parse_json(require_object(store.objects, path), path, dict)
    expected: dict[str, Any] = json.loads(layout.metadata())
    for key in ("shape", "data_type", "chunk_grid", "codecs"):
        if stored.get(key) != expected[key]:
            raise StoreDamagedError(
                f"{redact(store.url)}: array {name} of pass {pass_index} has another {key}"
            )


def requests_of_a_pass(spec: StoreSpec, targets: Sequence[str]) -> int:
    """Reads of objects, which a bucket counts, until one reader has seen every entry of a pass.

    Each array of inputs and `targets` takes one for an entry and one for a shard's index.
    """
    return (len(spec.input_packings) + len(targets)) * (spec.dataset.images + spec.units_per_pass)
