"""The reader: single entries out of sharded Zarr v3 arrays by positional reads, a thin layer over what the standard says.

zarr-python reads a shard's index again for every entry; here it is read once, checked and kept, so that an entry is one
read, one checksum and one decompression, all outside the GIL. It reads what `shards` writes and refuses anything else.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from kdcache.cache.codecs import Codec
from kdcache.cache.errors import IncompleteError, StoreDamagedError, StoreMismatchError
from kdcache.cache.ledger import Manifest
from kdcache.cache.objects import Objects, redact, require_object
from kdcache.cache.replay import EntryRow, parse_entry_row
from kdcache.cache.shards import ArrayLayout
from kdcache.cache.spec import StoreSpec
from kdcache.cache.store import VIEWS, Store, open_store

_EMPTY = 2**64 - 1  # offset and size of an inner chunk that was not written


@dataclass(frozen=True, slots=True)
class Entry:
    """One view and its targets, still in codes."""

    row: EntryRow
    codes: dict[str, np.ndarray]  # by target, (C, h, w) of the codec's dtype


class StoreReader:
    """Random access to the entries of a store's complete passes. Pickles small and opens files lazily.

    Raises:
        StoreMismatchError: the store does not hold one of `targets`.
        IncompleteError: no pass of the store is complete yet.
    """

    def __init__(self, url: str, targets: Sequence[str] = ()) -> None:
        self.url = url
        self.targets = tuple(targets)
        store = open_store(url)
        missing = [name for name in targets if name not in store.spec.targets]
        if missing:
            raise StoreMismatchError(
                f"{redact(url)} holds {', '.join(store.spec.targets)}, not {', '.join(missing)}",
                hint=f"build a store with --targets {','.join(dict.fromkeys([*store.spec.targets, *missing]))}",
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
        return Entry(row, {name: arrays[name].row(position) for name in self.targets})

    def entries(self, pass_index: int, positions: Sequence[int]) -> list[Entry]:
        """Several entries of one pass, in the order asked."""
        return [self.entry(pass_index, position) for position in positions]

    def rows(self, pass_index: int) -> np.ndarray:
        """The inputs of a whole pass, (n_images, columns) int32, see views.ENTRY_COLUMNS."""
        views = self._arrays[pass_index][VIEWS]
        return np.stack([views.row(position) for position in range(self.n_images)])

    def _open_arrays(self, store: Store, pass_index: int) -> dict[str, "ShardedArray"]:
        arrays = {}
        layouts = store.layouts(pass_index)
        for name in (VIEWS, *self.targets):
            check_metadata(store, pass_index, name, layouts[name])
            sizes = tuple(commit.objects[name].size for commit in self.manifests[pass_index].commits)
            arrays[name] = ShardedArray(store.objects, layouts[name], sizes, _array_path(pass_index, name))
        return arrays


class ShardedArray:
    """Rows of one array of one pass."""

    def __init__(
        self, objects: Objects, layout: ArrayLayout, shard_sizes: tuple[int, ...], path: str
    ) -> None:
        self.objects = objects
        self.layout = layout
        self.shard_sizes = shard_sizes  # bytes, from the ledger
        self.path = path
        self.row_bytes = int(np.prod(layout.row_shape)) * np.dtype(layout.dtype).itemsize
        self._indexes: dict[int, np.ndarray] = {}

    def row(self, position: int) -> np.ndarray:
        """Row `position`, of the layout's row shape and dtype."""
        unit, place = divmod(position, self.layout.unit_entries)
        path = f"{self.path}/{self.layout.shard_path(unit)}"
        offset, size = (int(n) for n in self._index(unit, path)[place])
        if offset == _EMPTY:
            raise StoreDamagedError(
                f"{path}: entry {place} is missing", hint="`kdcache build` again, or another copy"
            )
        packed = self._read(path, offset, size)
        if len(packed) != size or google_crc32c.value(packed[:-4]) != struct.unpack("<I", packed[-4:])[0]:
            raise StoreDamagedError(f"{path}: entry {place} does not match its checksum")
        return self._unpack(path, place, packed[:-4])

    def _index(self, unit: int, path: str) -> np.ndarray:
        """Offsets and sizes of a shard's inner chunks, (unit_entries, 2) uint64, read and checked once."""
        if unit not in self._indexes:
            length = 16 * self.layout.unit_entries + 4
            size = self.shard_sizes[unit]
            tail = self._read(path, size - length, length) if size >= length else b""
            if len(tail) != length or google_crc32c.value(tail[:-4]) != struct.unpack("<I", tail[-4:])[0]:
                raise StoreDamagedError(f"{path}: the shard's index is damaged or cut off")
            index = np.frombuffer(tail[:-4], dtype="<u8").reshape(-1, 2)
            held = index[index[:, 0] != _EMPTY]
            if (
                (held[:, 1] < 4) | (held[:, 0] > size) | (held[:, 1] > size) | (held.sum(axis=1) > size)
            ).any():
                raise StoreDamagedError(f"{path}: the shard's index points outside the shard")
            self._indexes[unit] = index
        return self._indexes[unit]

    def _read(self, path: str, offset: int, length: int) -> bytes:
        try:
            return self.objects.read_range(path, offset, length)
        except FileNotFoundError:
            raise StoreDamagedError(
                f"{path} is missing from {self.objects.url}",
                hint="the ledger lists it: restore it from a copy",
            ) from None

    def _unpack(self, path: str, place: int, packed: bytes) -> np.ndarray:
        # The header of a blosc buffer says how much it unpacks to; nothing is allocated on its word alone.
        if len(packed) < 16 or struct.unpack("<I", packed[4:8])[0] != self.row_bytes:
            raise StoreDamagedError(f"{path}: entry {place} does not unpack to {self.row_bytes} bytes")
        row = np.empty(self.layout.row_shape, dtype=self.layout.dtype)
        try:
            blosc.decompress(packed, row)
        except RuntimeError as error:
            raise StoreDamagedError(f"{path}: entry {place} cannot be unpacked: {error}") from None
        return row


def check_metadata(store: Store, pass_index: int, name: str, layout: ArrayLayout) -> None:
    """Refuse an array whose Zarr metadata is not what the spec and the calibration lead to."""
    stored: dict[str, Any] = json.loads(
        require_object(store.objects, f"{_array_path(pass_index, name)}/zarr.json")
    )
    expected: dict[str, Any] = json.loads(layout.metadata())
    for key in ("shape", "data_type", "chunk_grid", "codecs"):
        if stored.get(key) != expected[key]:
            raise StoreDamagedError(
                f"{redact(store.url)}: array {name} of pass {pass_index} has another {key}"
            )


def _array_path(pass_index: int, name: str) -> str:
    return f"passes/{pass_index:03d}/{name}"
