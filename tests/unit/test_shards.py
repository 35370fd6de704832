"""Shards follow the Zarr v3 standard: independent readers read them back."""

import json
import struct
import sys
import threading
import time

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import blosc

from kdcache.cache.codecs.shards import EMPTY, ArrayLayout, group_metadata, same_metadata
from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.reader import ShardedArray, read_rows


@st.composite
def arrays(draw):
    """A layout and the values of a whole pass, zeros among them; rows of a few bytes and of several blocks of blosc."""
    row_shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    if draw(st.integers(0, 4)) == 0:
        row_shape = (draw(st.integers(1, 3)) * 70_000, *row_shape[1:2])
    rows = draw(st.integers(1, 9))
    dtype = draw(st.sampled_from(["int16", "float16", "int32", "uint8"]))
    layout = ArrayLayout(
        name="logits",
        rows=rows,
        row_shape=row_shape,
        dtype=dtype,
        unit_entries=draw(st.integers(1, 5)),
        dimensions=("entry", *(f"axis{n}" for n in range(len(row_shape)))),
        shuffle=draw(st.sampled_from(["shuffle", "bitshuffle", "noshuffle"])),
        attributes={"kdcache": {"pass": 0}},
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = generator.integers(-300, 300, (rows, *row_shape)).astype(dtype)
    values[generator.random(rows) < 0.3] = 0
    return layout, values


def write_array(folder, layout, values, missing=()):
    """The array as Zarr files; the inner chunks of rows `missing` are left out of the shards' indexes."""
    (folder / "zarr.json").write_bytes(layout.metadata())
    for unit, start in enumerate(range(0, layout.rows, layout.unit_entries)):
        shard = layout.encode(values[start : start + layout.unit_entries])
        index = layout.read_index(shard[-layout.index_bytes :], len(shard), "x").copy()
        for place in range(layout.unit_entries):
            if start + place in missing:
                index[place] = EMPTY
        path = folder / layout.shard_path(unit)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(with_index(shard, index))


def reader_of(folder, layout):
    """The array in that folder, read by kdcache."""
    units = -(-layout.rows // layout.unit_entries)
    sizes = np.array([(folder / layout.shard_path(unit)).stat().st_size for unit in range(units)])
    return ShardedArray(open_objects(str(folder.parent)), layout, sizes, folder.name)


def with_index(shard: bytes, index: np.ndarray) -> bytes:
    """The shard with another index that has a valid checksum."""
    words = index.astype("<u8").tobytes()
    return shard[: -len(words) - 4] + words + google_crc32c.value(words).to_bytes(4, "little")


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


@settings(max_examples=60, deadline=None)
@given(array=arrays(), data=st.data())
def test_the_reader_agrees_with_both_and_calls_a_missing_row_damage(array, data, tmp_path_factory):
    layout, values = array
    missing = data.draw(st.sets(st.integers(0, layout.rows - 1), max_size=2))
    folder = tmp_path_factory.mktemp("array")
    write_array(folder, layout, values, missing)
    by_zarr = zarr.open_array(str(folder), mode="r")
    kvstore = {"driver": "file", "path": str(folder)}
    by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
    reader = reader_of(folder, layout)
    for row in range(layout.rows):
        theirs = by_zarr[row]
        assert np.array_equal(theirs, by_tensorstore[row].read().result())
        if row in missing:  # where independent readers fill in zeros
            assert not theirs.any()
            with pytest.raises(StoreDamagedError, match=rf"entry {row % layout.unit_entries} is missing"):
                reader.row(row)
        else:
            mine = reader.row(row)
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
    whole = sorted(set(range(layout.rows)) - missing)
    if whole:
        positions = data.draw(st.lists(st.sampled_from(whole), max_size=8))
        first, again = read_rows([reader, reader_of(folder, layout)], positions)
        assert np.array_equal(first, values[positions]) and np.array_equal(again, values[positions])


LAYOUT = ArrayLayout(
    name="x", rows=2, row_shape=(4,), dtype="int16", unit_entries=2, dimensions=("entry", "x")
)
ROWS = np.arange(8, dtype=np.int16).reshape(2, 4)


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


@pytest.mark.parametrize("place", [4, 12], ids=["unpacks to more", "is longer"])
def test_a_header_that_lies_about_its_size_is_damage(place):
    """The checksum is valid, as in an attack. Without checks, blosc would write or read outside of its buffers."""
    packed = bytearray(LAYOUT.encode(ROWS)[: -LAYOUT.index_bytes])
    packed = packed[: len(packed) // 2 - 4]
    row = np.empty(LAYOUT.row_shape, LAYOUT.dtype)
    LAYOUT.unpack(with_checksum(packed), row, "x")
    assert np.array_equal(row, ROWS[0])
    struct.pack_into("<I", packed, place, 2**20)
    with pytest.raises(StoreDamagedError, match="does not unpack"):
        LAYOUT.unpack(with_checksum(packed), row, "x")


def with_checksum(data: bytes) -> bytes:
    return bytes(data) + google_crc32c.value(bytes(data)).to_bytes(4, "little")


def test_unpacking_runs_on_one_thread_and_lets_others_run():
    assert blosc.use_threads is False
    layout = ArrayLayout(
        name="x", rows=1, row_shape=(2**25,), dtype="int16", unit_entries=1, dimensions=("entry", "x")
    )
    row = np.arange(2**25, dtype=np.int16)
    shard = layout.encode(row[None])
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)

    other = threading.Thread(target=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)  # no thread has to give up the GIL
    other.start()
    try:
        before = turns[0]
        layout.unpack(shard[: -layout.index_bytes], row, "x")
        assert turns[0] > before
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        other.join()


def test_metadata_is_compared_by_meaning():
    metadata = group_metadata({"kdcache": {"pass": 1}})
    reordered = json.dumps(dict(reversed(json.loads(metadata).items()))).encode()
    assert same_metadata(metadata, reordered)
    assert not same_metadata(metadata, group_metadata({"kdcache": {"pass": 2}}))
    assert not same_metadata(metadata, b"not json")
    assert not same_metadata(metadata, b"[]")
