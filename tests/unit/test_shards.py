"""Shards are what the Zarr v3 standard says, read back by readers nobody here wrote."""

import json

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.shards import ArrayLayout, group_metadata, same_metadata


@st.composite
def arrays(draw):
    """A layout and the values of a whole pass, zeros among them."""
    row_shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    rows = draw(st.integers(1, 9))
    dtype = draw(st.sampled_from(["int16", "float16", "int32"]))
    layout = ArrayLayout(
        name="logits",
        rows=rows,
        row_shape=row_shape,
        dtype=dtype,
        unit_entries=draw(st.integers(1, 5)),
        dimensions=("entry", *(f"axis{n}" for n in range(len(row_shape)))),
        attributes={"kdcache": {"pass": 0}},
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = generator.integers(-300, 300, (rows, *row_shape)).astype(dtype)
    values[generator.random(rows) < 0.3] = 0
    return layout, values


def write_array(folder, layout, values):
    (folder / "zarr.json").write_bytes(layout.metadata())
    for unit, start in enumerate(range(0, layout.rows, layout.unit_entries)):
        path = folder / layout.shard_path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(layout.encode(values[start : start + layout.unit_entries]))


@settings(max_examples=25, deadline=None)
@given(array=arrays())
def test_zarr_python_and_tensorstore_read_the_same(array, tmp_path_factory):
    layout, values = array
    folder = tmp_path_factory.mktemp("array")
    write_array(folder, layout, values)
    by_zarr = zarr.open_array(str(folder), mode="r")
    assert np.array_equal(by_zarr[:], values)
    assert by_zarr.attrs["kdcache"] == {"pass": 0}
    kvstore = {"driver": "file", "path": str(folder)}
    by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
    assert np.array_equal(by_tensorstore, values)


@settings(max_examples=25, deadline=None)
@given(array=arrays())
def test_encoding_is_repeatable_and_decodes(array):
    layout, values = array
    rows = values[: layout.unit_entries]
    shard = layout.encode(rows)
    assert shard == layout.encode(rows.copy())
    assert np.array_equal(layout.decode(shard, len(rows)), rows)


LAYOUT = ArrayLayout(
    name="x", rows=2, row_shape=(4,), dtype="int16", unit_entries=2, dimensions=("entry", "x")
)
ROWS = np.arange(8, dtype=np.int16).reshape(2, 4)


def with_index(shard: bytes, index: np.ndarray) -> bytes:
    """The shard with another index, whose checksum is right."""
    words = index.astype("<u8").tobytes()
    return shard[: -len(words) - 4] + words + google_crc32c.value(words).to_bytes(4, "little")


@pytest.mark.parametrize("place", [5, 25, -30, -1])
def test_a_damaged_shard_does_not_decode(place):
    shard = bytearray(LAYOUT.encode(ROWS))
    shard[place] ^= 1
    with pytest.raises(StoreDamagedError, match="array x"):
        LAYOUT.decode(bytes(shard), 2)


def test_a_missing_row_is_damage_and_not_zeros():
    shard = LAYOUT.encode(ROWS[:1])
    assert np.array_equal(LAYOUT.decode(shard, 1), ROWS[:1])
    with pytest.raises(StoreDamagedError, match="row 1 is missing"):
        LAYOUT.decode(shard, 2)


@pytest.mark.parametrize("row", [(2**40, 30), (0, 2**40), (0, 3), (2**63, 2**63), (10, 2**64 - 4)])
def test_an_index_that_points_outside_is_damage(row):
    shard = LAYOUT.encode(ROWS)
    index = LAYOUT.read_index(shard[-LAYOUT.index_bytes :], len(shard), "x").copy()
    assert np.array_equal(LAYOUT.decode(with_index(shard, index), 2), ROWS)
    index[1] = np.array(row, dtype=np.uint64)
    with pytest.raises(StoreDamagedError, match="outside"):
        LAYOUT.decode(with_index(shard, index), 2)


def test_unpacking_runs_on_one_thread():
    assert blosc.use_threads is False


def test_metadata_is_compared_by_meaning():
    metadata = group_metadata({"kdcache": {"pass": 1}})
    reordered = json.dumps(dict(reversed(json.loads(metadata).items()))).encode()
    assert same_metadata(metadata, reordered)
    assert not same_metadata(metadata, group_metadata({"kdcache": {"pass": 2}}))
    assert not same_metadata(metadata, b"not json")
    assert not same_metadata(metadata, b"[]")
