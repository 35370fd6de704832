"""The reader: single entries out of sharded Zarr v3 arrays by positional reads, a thin layer over what the standard says.

zarr-python reads a shard's index again for every entry; here it is read once, checked and kept, so that an entry is one
read, one checksum and one decompression, all outside the GIL. It reads what `shards` writes and refuses anything else.
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
from kdcache.cache.objects import Objects, redact, require_object
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
        StoreMismatchError: the store does not hold one of `targets`.
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
        self.passes = tuple(store.complete_passes())
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

    def entry(self, pass_index: int, position: int) -> Entry:
        """The entry at `position` of a complete pass. Raises StoreDamagedError when a byte of it is wrong."""
        arrays = self._arrays[pass_index]
        row = parse_entry_row(arrays[VIEWS].row(position))
        codes = {name: self._codes(arrays[name], position) for name in self.targets}
        return Entry(row, codes, self._crop(arrays, position, row) if self.has_crops else None)

    def entries(self, pass_index: int, positions: Sequence[int]) -> list[Entry]:
        """Several entries of one pass, in the order asked."""
        return [self.entry(pass_index, position) for position in positions]

    def rows(self, pass_index: int) -> np.ndarray:
        """The inputs of a whole pass, (n_images, columns) int32, see views.ENTRY_COLUMNS."""
        views = self._arrays[pass_index][VIEWS]
        return np.stack([views.row(position) for position in range(self.n_images)])

    def _crop(self, arrays: Mapping[str, "ShardedArray"], position: int, row: EntryRow) -> Crop:
        """An entry's stored crop."""
        file, label = arrays[CROPS].row(position), arrays[LABELS].row(position)
        where = f"{arrays[CROPS].path}: entry {position}"
        return unpack_crop(file, label, (row.view.height, row.view.width), where)

    def _codes(self, array: "ShardedArray", position: int) -> np.ndarray:
        """An entry's codes out of its stored row."""
        row = array.row(position)
        try:
            return self.codecs[array.layout.name].unpack(row)
        except ValueError as error:
            raise StoreDamagedError(f"{array.path}: entry {position} cannot be unpacked: {error}") from None

    def _open_arrays(self, store: Store, pass_index: int) -> dict[str, "ShardedArray"]:
        arrays = {}
        layouts = store.layouts(pass_index)
        inputs = store.spec.input_packings if self.has_crops else (VIEWS,)
        for name in (*inputs, *self.targets):
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
        self._indexes: dict[int, np.ndarray] = {}

    def row(self, position: int) -> np.ndarray:
        """Row `position`, of the layout's row shape and dtype."""
        unit, place = divmod(position, self.layout.unit_entries)
        path = f"{self.path}/{self.layout.shard_path(unit)}"
        offset, size = self._index(unit, path)[place].tolist()
        packed = b"" if offset == EMPTY else self._read(path, offset, size)
        return self.layout.unpack(packed, f"{path}: entry {place}")

    def _index(self, unit: int, path: str) -> np.ndarray:
        """Offsets and sizes of a shard's rows, (unit_entries, 2) uint64, read and checked once."""
        if unit not in self._indexes:
            size = int(self.shard_sizes[unit])
            start = max(0, size - self.layout.index_bytes)
            tail = self._read(path, start, self.layout.index_bytes)
            self._indexes[unit] = self.layout.read_index(tail, size, path)
        return self._indexes[unit]

    def _read(self, path: str, offset: int, length: int) -> bytes:
        try:
            return self.objects.read_range(path, offset, length)
        except FileNotFoundError:
            raise StoreDamagedError(
                f"{path} is missing from {self.objects.url}",
                hint="the ledger lists it: restore it from a copy",
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_indexes": {}}


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
