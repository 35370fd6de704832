"""Shards: the Zarr v3 arrays of a pass, with one inner chunk for each entry and one shard for each unit.

The arrays use standard codecs only: bytes, blosc (zstd after a byte or bit shuffle), crc32c, sharding_indexed.
zarr-python encodes a shard, but into memory, because a shard must be complete, hashed and created once; zarr's own
stores neither sync nor refuse to overwrite. Decoding is done here, strictly by the standard: zarr-python reads a
missing inner chunk as zeros, and lets a blosc header decide how much memory to allocate.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from kdcache.cache.codecs.packing import Packing, Shuffle
from kdcache.cache.errors import StoreDamagedError

# blosc's own threads, on by default in a process's main thread, would compete with the reader's for cores, and they do
# not exist after a fork. zarr switches them off on import; it is repeated here because the reader relies on it.
blosc.use_threads = False

EMPTY = 2**64 - 1  # offset and size of an inner chunk that was not written

# zstd sets up 160 kB of state for every block. With blosc's own choice, 32 kB at this level, that is half the time of
# unpacking. 256 kB still fit a core's cache, and change the size by less than half a percent.
_BLOCK_BYTES = 2**18

# Fields of a zarr.json that a writer may omit if they are empty.
_OPTIONAL = ("attributes", "storage_transformers", "consolidated_metadata")

_BLOSC_HEADER_BYTES = 16
_CHECKSUM_BYTES = 4
# The CRC-32C of any bytes followed by their own CRC-32C: a check without a copy
_CHECKSUM_RESIDUE = 0x48674BC7


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """Shape and type of one array of a pass."""

    name: str
    rows: int  # entries in a pass
    row_shape: tuple[int, ...]  # of one entry
    dtype: str
    unit_entries: int
    dimensions: tuple[str, ...]  # one name for each axis; the first is "entry"
    shuffle: Shuffle = "shuffle"  # blosc's filter before zstd
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_packing(
        cls,
        name: str,
        packing: Packing,
        *,
        rows: int,
        unit_entries: int | None = None,  # default: as many as `rows`
        attributes: Mapping[str, Any] | None = None,
    ) -> "ArrayLayout":
        """The layout of the array for a codec's rows."""
        return cls(
            name=name,
            rows=rows,
            row_shape=packing.shape,
            dtype=packing.dtype,
            unit_entries=unit_entries or rows,
            # xarray gives all axes of one name one size, so names of other axes start with the array's name.
            dimensions=("entry", *(f"{name}_{axis}" for axis in packing.axes)),
            shuffle=packing.shuffle,
            attributes=attributes or {},
        )

    def shard_path(self, unit: int) -> str:
        """Path of a unit's shard within the array, by Zarr's default chunk keys."""
        return "/".join(["c", str(unit), *("0" for _ in self.row_shape)])

    def metadata(self) -> bytes:
        """The array's zarr.json."""
        return _files_of(self, rows=self.rows)["zarr.json"]

    def encode(
        self,
        rows: np.ndarray,  # (n, *row_shape) of dtype, n <= unit_entries
    ) -> bytes:
        """The shard with these rows. Its bytes do not depend on its position in the array."""
        assert (
            rows.dtype == self.dtype
            and rows.shape[1:] == self.row_shape
            and 0 < len(rows) <= self.unit_entries
        )
        # Encoded as the only shard of a short array: the same bytes, and only this unit's memory.
        return _files_of(self, rows=len(rows), values=rows)[self.shard_path(0)]

    def decode(self, shard: bytes, n: int) -> np.ndarray:
        """The first `n` rows of a shard, (n, *row_shape) of dtype, each checked. Raises StoreDamagedError."""
        where = f"array {self.name}"
        index = self.read_index(shard[-self.index_bytes :], len(shard), where)
        rows = self.empty_rows(n)
        for row, (offset, size) in enumerate(index[:n].tolist()):
            self.unpack(shard[offset : offset + size], rows[row], f"{where}, row {row}")
        return rows

    def empty_rows(self, n: int) -> np.ndarray:
        """An uninitialised array for `n` rows, (n, *row_shape) of dtype."""
        return np.empty((n, *self.row_shape), dtype=self.dtype)

    @property
    def index_bytes(self) -> int:
        """Size of the index at the end of a shard: an offset and a size for each row, and a checksum."""
        return 16 * self.unit_entries + _CHECKSUM_BYTES

    @property
    def max_shard_bytes(self) -> int:
        """Upper limit for a shard: rows that do not compress are stored as they are, plus headers and checksums."""
        return self.unit_entries * (self.row_bytes + 2 * _BLOSC_HEADER_BYTES) + self.index_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, unpacked."""
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def read_index(self, tail: bytes, shard_bytes: int, where: str) -> np.ndarray:
        """Offsets and sizes of a shard's rows in bytes, (unit_entries, 2) uint64, from its last `index_bytes` bytes.

        Raises:
            StoreDamagedError: names `where`. The index is truncated or damaged, or points outside the shard, or rows
                overlap.
        """
        if len(tail) != self.index_bytes or not _sum_fits(tail):
            raise StoreDamagedError(f"{where}: the shard's index is damaged or cut off")
        index = np.frombuffer(tail, dtype="<u8", count=2 * self.unit_entries).reshape(-1, 2)
        # Compared in an order that cannot overflow uint64: offset + size of a hostile index could wrap around.
        written = index[index[:, 0] != EMPTY]
        offsets, sizes = written[written[:, 0].argsort()].T
        last_starts = shard_bytes - np.minimum(sizes, shard_bytes)
        if ((sizes < _CHECKSUM_BYTES) | (sizes > shard_bytes) | (offsets > last_starts)).any():
            raise StoreDamagedError(f"{where}: the shard's index points outside the shard")
        if (offsets[:-1] + sizes[:-1] > offsets[1:]).any():
            raise StoreDamagedError(f"{where}: the shard's index has rows that overlap")
        return index

    def unpack(
        self,
        packed: bytes,
        row: np.ndarray,  # row_shape of dtype, contiguous: filled without holding the GIL
        where: str,
    ) -> None:
        """Unpack one row from its inner chunk into `row`. Raises StoreDamagedError, which names `where`."""
        if len(packed) < _BLOSC_HEADER_BYTES + _CHECKSUM_BYTES or not _sum_fits(packed):
            raise StoreDamagedError(f"{where} is missing or does not match its checksum")
        # A blosc header says how many bytes it unpacks to, and from how many; blosc itself trusts both.
        unpacked_bytes, _, packed_bytes = struct.unpack_from("<3I", packed, 4)
        if (unpacked_bytes, packed_bytes) != (self.row_bytes, len(packed) - _CHECKSUM_BYTES):
            raise StoreDamagedError(f"{where} does not unpack to {self.row_bytes} bytes")
        try:
            # Ignores the checksum at the end; cutting it off would copy the row
            blosc.decompress(packed, row)
        except RuntimeError as error:
            raise StoreDamagedError(f"{where} does not decompress: {error}") from None


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The zarr.json of a Zarr v3 group."""
    return json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=2, sort_keys=True
    ).encode()


def same_metadata(mine: bytes, theirs: bytes) -> bool:
    """True if two zarr.json texts mean the same. Writers differ in key order and in the fields they omit."""

    def meaning(text: bytes) -> Any:
        document = json.loads(text)
        absent = [key for key in _OPTIONAL if document.get(key) in ([], {}, None)]
        return {key: value for key, value in document.items() if key not in absent}

    try:
        return bool(meaning(mine) == meaning(theirs))
    except (ValueError, AttributeError, RecursionError):  # not JSON, or not an object
        return False


def _files_of(layout: ArrayLayout, *, rows: int, values: np.ndarray | None = None) -> dict[str, bytes]:
    import zarr  # half a second, which reading does without
    from zarr.codecs import BloscCodec, Crc32cCodec
    from zarr.storage import MemoryStore

    store = MemoryStore()
    array = zarr.create_array(
        store=store,
        shape=(rows, *layout.row_shape),
        chunks=(1, *layout.row_shape),
        shards=(layout.unit_entries, *layout.row_shape),
        dtype=layout.dtype,
        fill_value=0,
        filters=None,
        compressors=[
            BloscCodec(
                typesize=np.dtype(layout.dtype).itemsize,
                cname="zstd",
                clevel=1,
                shuffle=layout.shuffle,
                blocksize=_BLOCK_BYTES,
            ),
            Crc32cCodec(),
        ],
        dimension_names=layout.dimensions,
        attributes=dict(layout.attributes),
        config={"write_empty_chunks": True},  # a row of zeros is data; zarr would leave it out
    )
    if values is not None:
        array[:] = values
    return {path: buffer.to_bytes() for path, buffer in store._store_dict.items()}


def _sum_fits(data: bytes) -> bool:
    """True if the last four bytes are the CRC-32C of the others."""
    return bool(google_crc32c.value(data) == _CHECKSUM_RESIDUE)
