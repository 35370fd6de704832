"""Shards are what the Zarr v3 standard says, read back by readers nobody here wrote."""

import json

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_a_damaged_shard_does_not_decode():
    layout = ArrayLayout(
        name="x", rows=2, row_shape=(4,), dtype="int16", unit_entries=2, dimensions=("entry", "x")
    )
    shard = bytearray(layout.encode(np.arange(8, dtype=np.int16).reshape(2, 4)))
    shard[5] ^= 1
    with pytest.raises(StoreDamagedError, match="array x"):
        layout.decode(bytes(shard), 2)


def test_metadata_is_compared_by_meaning():
    metadata = group_metadata({"kdcache": {"pass": 1}})
    reordered = json.dumps(dict(reversed(json.loads(metadata).items()))).encode()
    assert same_metadata(metadata, reordered)
    assert not same_metadata(metadata, group_metadata({"kdcache": {"pass": 2}}))
    assert not same_metadata(metadata, b"not json")
