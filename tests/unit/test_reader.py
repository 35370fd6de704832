"""The reader agrees with zarr-python on every entry, and reports every damaged byte before it is used."""

import pickle
import random

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from kdcache.cache.errors import IncompleteError, KDCacheError, StoreDamagedError, StoreMismatchError
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.store.ledger import Commit, Manifest
from kdcache.cache.store.reader import StoreReader


def test_every_entry_equals_zarr_python(store):
    reader = StoreReader(store.url, ["logits", "features"])
    assert reader.passes == (0, 1) and reader.n_images == 7
    group = zarr.open_group(store.url, mode="r")
    for index in reader.passes:
        assert np.array_equal(reader.rows(index), group[f"passes/{index:03d}/views"][:])
        for position in range(reader.n_images):
            entry = reader.entry(index, position)
            assert entry.row.view_index == index
            for name, codes in entry.codes.items():
                expected = group[f"passes/{index:03d}/{name}"][position]
                assert codes.dtype == expected.dtype and np.array_equal(codes, expected)


@pytest.mark.parametrize("codec", ["fp16", "uniform", "delta", "pca:2", "dct:0.5", "dct-range:0.5"])
def test_every_codec_s_entries_equal_zarr_python_and_tensorstore(tmp_path, stores, codec):
    store = stores["begin"](str(tmp_path / "store"), stores["spec"](codec=codec, unit_entries=2))
    stores["fill"](store, 0)
    reader = StoreReader(store.url, ["logits", "features"])
    group = zarr.open_group(store.url, mode="r")["passes/000"]
    positions = [6, 0, 3, 3, 5]
    entries = reader.entries(0, positions)
    for name in ("logits", "features"):
        kvstore = {"driver": "file", "path": f"{store.url}/passes/000/{name}"}
        by_tensorstore = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        for position, entry in zip(positions, entries, strict=True):
            row = group[name][position]
            assert np.array_equal(row, by_tensorstore[position].read().result())
            assert np.array_equal(entry.codes[name], reader.codecs[name].unpack(row))
            assert np.array_equal(reader.entry(0, position).codes[name], entry.codes[name])


def test_codes_decode_to_what_was_stored(store, stores):
    reader = StoreReader(store.url, ["logits"])
    rows = torch.from_numpy(stores["rows"](store.spec, 1)["logits"])
    entries = reader.entries(1, [5, 0])
    decoded = reader.codecs["logits"].decode(torch.from_numpy(np.stack([e.codes["logits"] for e in entries])))
    assert torch.equal(decoded, store.calibration.codecs["logits"].decode(rows[[5, 0]]))


def test_it_pickles_small_and_reads_after(store):
    reader = StoreReader(store.url, ["logits"])
    reader.entry(0, 0)
    data = pickle.dumps(reader)
    assert len(data) < 10_000
    assert np.array_equal(pickle.loads(data).entry(1, 3).codes["logits"], reader.entry(1, 3).codes["logits"])


def test_a_pickle_grows_by_a_number_a_shard(tmp_path, stores):
    """A reader that is pickled to workers takes the sizes of units along, but not the digests of manifests."""
    spec = stores["spec"](images=3000, unit_entries=1)
    store = stores["begin"](str(tmp_path / "store"), spec)
    store.create_pass(0)
    record = ObjectRecord.of(b"a shard")
    commits = tuple(
        Commit(
            pass_index=0,
            unit=unit,
            entries=1,
            calibration=store.calibration.digest,
            objects=dict.fromkeys(("views", "logits", "features"), record),
        )
        for unit in range(3000)
    )
    manifest = Manifest(pass_index=0, commits=commits)
    store.objects.put_new("kd/passes/000/manifest-0.json", manifest.to_bytes())
    reader = StoreReader(store.url, ["logits", "features"])
    assert reader.manifests[0].digest == manifest.digest
    assert len(pickle.dumps(reader)) < 3000 * (3 * 8 + len(pickle.dumps("image-1234"))) + 10_000


def test_reading_from_memory_equals_reading_from_disk(tmp_path, store, spec, stores):
    remote = stores["begin"](f"memory://{tmp_path.name}", spec)
    stores["fill"](remote, 0)
    here, there = (StoreReader(url, ["features"]) for url in (store.url, remote.url))
    for position in range(7):
        assert np.array_equal(
            here.entry(0, position).codes["features"], there.entry(0, position).codes["features"]
        )


def test_a_missing_target_is_refused(store):
    with pytest.raises(StoreMismatchError, match="features, logits, not aux"):
        StoreReader(store.url, ["logits", "aux"])


def test_an_unfinished_store_is_refused(tmp_path, spec, stores):
    store = stores["begin"](str(tmp_path / "store"), spec)
    stores["fill"](store, 0, units=[0])
    with pytest.raises(IncompleteError, match="no complete pass"):
        StoreReader(store.url, ["logits"])


def test_any_flipped_bit_of_a_shard_is_found(store, tmp_path):
    """Either the entry with the bit is refused, or the bit is outside of the entries that are read and nothing changes."""
    path = tmp_path / "store/passes/000/logits/c/0/0/0/0"
    whole = path.read_bytes()
    clean = [StoreReader(store.url, ["logits"]).entry(0, p).codes["logits"] for p in range(3)]
    chooser = random.Random(0)
    for _ in range(150):
        bit = chooser.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        refused = 0
        for position in range(3):
            try:
                codes = StoreReader(store.url, ["logits"]).entry(0, position).codes["logits"]
            except StoreDamagedError:
                refused += 1
            else:
                assert np.array_equal(codes, clean[position])
        assert refused >= 1
    path.write_bytes(whole)


def everything(url: str) -> dict[str, object]:
    """Everything that training reads from a store, except the image ids, which it compares with its dataset's."""
    reader = StoreReader(url, ["logits", "features"])
    places = [(index, position) for index in reader.passes for position in range(reader.n_images)]
    entries = [reader.entry(*place) for place in places]
    return {
        "spec": reader.spec,
        "codecs": reader.codecs,
        "passes": reader.passes,
        "rows": [entry.row for entry in entries],
        "codes": [{name: codes.tobytes() for name, codes in entry.codes.items()} for entry in entries],
    }


@pytest.mark.parametrize("flips", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_one_bit_flipped_in_any_object_is_one_clear_error_or_changes_nothing(store, tmp_path, flips):
    clean, chooser, refused = everything(store.url), random.Random(0), set()
    for path in sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for bit in chooser.sample(range(8 * len(whole)), min(flips, 8 * len(whole))):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                assert everything(store.url) == clean
            except KDCacheError as error:
                assert "\n" not in str(error)
                refused.add(path.relative_to(tmp_path / "store").as_posix())
        path.write_bytes(whole)
    shards = {f"passes/{p:03d}/{name}/c" for p in (0, 1) for name in ("views", "logits", "features")}
    assert {"kd/spec.json", "kd/calibration.json", "kd/images.json"} <= refused
    assert all(any(path.startswith(shard) for path in refused) for shard in shards)


def test_a_shard_cut_off_while_it_is_read_is_found(store, tmp_path):
    path = tmp_path / "store/passes/000/logits/c/0/0/0/0"
    reader = StoreReader(store.url, ["logits"])
    reader.entry(0, 0)  # its index is already read and its file open
    with open(path, "r+b") as file:
        file.truncate(100)
    with pytest.raises(StoreDamagedError, match=r"logits/c/0/0/0/0: entry 2 is missing or does not match"):
        reader.entry(0, 2)


@pytest.mark.parametrize("keep", [0, 3, 50, -1])
def test_a_truncated_shard_is_found(store, tmp_path, keep):
    path = tmp_path / "store/passes/000/logits/c/0/0/0/0"
    path.write_bytes(path.read_bytes()[:keep])
    reader = StoreReader(store.url, ["logits"])
    with pytest.raises(StoreDamagedError):
        reader.entry(0, 0)


def test_a_deleted_shard_is_found(store, tmp_path):
    (tmp_path / "store/passes/001/logits/c/2/0/0/0").unlink()
    reader = StoreReader(store.url, ["logits"])
    reader.entry(1, 0)
    with pytest.raises(StoreDamagedError, match="missing"):
        reader.entry(1, 6)


def test_metadata_of_another_array_is_refused(store, tmp_path):
    path = tmp_path / "store/passes/000/logits/zarr.json"
    path.write_text(path.read_text().replace('"int16"', '"int32"'))
    with pytest.raises(StoreDamagedError, match="data_type"):
        StoreReader(store.url, ["logits"])


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_metadata_that_is_none_is_damage(store, tmp_path, text):
    (tmp_path / "store/passes/000/logits/zarr.json").write_text(text)
    with pytest.raises(StoreDamagedError):
        StoreReader(store.url, ["logits"])
