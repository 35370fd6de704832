"""Shards: the Zarr v3 arrays of a pass, written by zarr-python one whole shard at a time.

Every array has one entry an inner chunk and one unit a shard, and holds standard codecs only: bytes, blosc (zstd behind a
byte shuffle), crc32c, sharding_indexed. zarr-python is used as a pure encoder into memory, because a shard must be
whole, hashed and created once; its own stores neither sync nor refuse to overwrite.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from kdcache.cache.errors import StoreDamagedError


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """Shape and type of one array of a pass."""

    name: str
    rows: int  # entries a pass
    row_shape: tuple[int, ...]  # of one entry
    dtype: str
    unit_entries: int
    dimensions: tuple[str, ...]  # a name for each axis, the first is "entry"
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def shard_path(self, unit: int) -> str:
        """Path of the shard under the array: Zarr's default chunk keys."""
        return "/".join(["c", str(unit), *("0" for _ in self.row_shape)])

    def metadata(self) -> bytes:
        """The array's zarr.json."""
        files = _files_of(self, rows=self.rows)
        return files["zarr.json"]

    def encode(
        self,
        rows: np.ndarray,  # (n, *row_shape) of dtype, n <= unit_entries
    ) -> bytes:
        """The shard that holds `rows`, the same bytes at whichever position it stands."""
        assert (
            rows.dtype == self.dtype
            and rows.shape[1:] == self.row_shape
            and 0 < len(rows) <= self.unit_entries
        )
        return _files_of(self, rows=len(rows), values=rows)[self.shard_path(0)]

    def decode(self, shard: bytes, n: int) -> np.ndarray:
        """The first `n` rows of a shard, every one decoded and checked. Raises StoreDamagedError."""
        store = MemoryStore({"zarr.json": _buffer(_files_of(self, rows=n)["zarr.json"])})
        store._store_dict[self.shard_path(0)] = _buffer(shard)
        try:
            return np.asarray(zarr.open_array(store=store, mode="r", zarr_format=3)[:])
        except (ValueError, RuntimeError, KeyError, TypeError) as error:  # what zarr raises for damaged bytes
            raise StoreDamagedError(f"array {self.name}: a shard cannot be decoded: {error}") from None


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The zarr.json of a Zarr v3 group."""
    return json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}, indent=2, sort_keys=True
    ).encode()


def same_metadata(mine: bytes, theirs: bytes) -> bool:
    """Whether two zarr.json texts mean the same: key order and optional fields differ between writers."""

    def meaning(text: bytes) -> Any:
        document = json.loads(text)
        return {key: value for key, value in document.items() if value not in ([], {}, None)}

    try:
        return bool(meaning(mine) == meaning(theirs))
    except ValueError:
        return False


def _files_of(layout: ArrayLayout, *, rows: int, values: np.ndarray | None = None) -> dict[str, bytes]:
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
            BloscCodec(typesize=np.dtype(layout.dtype).itemsize, cname="zstd", clevel=1, shuffle="shuffle"),
            Crc32cCodec(),
        ],
        dimension_names=layout.dimensions,
        attributes=dict(layout.attributes),
        config={"write_empty_chunks": True},  # a row of zeros is a value, not an absence
    )
    if values is not None:
        array[:] = values
    return {path: buffer.to_bytes() for path, buffer in store._store_dict.items()}


def _buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)
