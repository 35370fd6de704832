"""The store: created once, committed last, its objects adopted and never overwritten, readable by other libraries."""

import json

import numpy as np
import pytest
import tensorstore
import zarr

from kdcache.cache.codecs.registry import Uniform
from kdcache.cache.errors import (
    KDCacheError,
    StoreDamagedError,
    StoreMismatchError,
    StoreNotFoundError,
    UsageError,
)
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.opening import create_store, list_stores, open_store
from kdcache.cache.store.spec import VIEWS, StoreSpec, canonical_json, default_unit_entries
from kdcache.cache.views.crops import crop_packings
from kdcache.cli.home import choose_store


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def unit_of(rows, spec, unit):
    places = spec.unit_rows(unit)
    return {name: array[places.start : places.stop] for name, array in rows.items()}


def test_spec_round_trip_and_key(spec, stores):
    again = StoreSpec.from_dict(json.loads(canonical_json(spec.to_dict())))
    assert again == spec and again.key == spec.key
    keys = {stores["spec"](**change).key for change in ({}, {"seed": 1}, {"codec": "fp16"}, {"images": 8})}
    assert len(keys) == 4
    assert stores["spec"](seed=1).differences(spec) == ["seed: 1, 0"]


def test_unit_entries_follow_the_largest_raw_shard(spec):
    target = next(iter(spec.targets.values()))
    assert default_unit_entries(spec.targets, {}) == 64
    big = type(target)(codec="fp16", shape=(512, 64, 128))
    assert default_unit_entries({"features": big}, {}) == 8  # 8 x 8 MiB
    assert default_unit_entries({"features": type(target)(codec="fp16", shape=(2048, 256, 256))}, {}) == 1
    assert default_unit_entries(spec.targets, crop_packings((512, 1024))) == 42  # 42 x 1.5 MiB


def test_a_complete_store_says_so(store):
    assert store.complete_passes() == [0, 1]
    assert store.is_complete and store.goal == 2
    assert open_store(store.url).spec == store.spec
    assert store.raise_goal(1) == 2  # a goal never shrinks
    assert store.raise_goal(3) == 3 and not store.is_complete


def test_plain_readers_open_it(store, stores, tmp_path):
    rows = stores["rows"](store.spec, 1)
    group = zarr.open_group(store.url, mode="r")
    for name, values in rows.items():
        assert np.array_equal(group[f"passes/001/{name}"][:], values)
        kvstore = {"driver": "file", "path": f"{store.url}/passes/001/{name}"}
        read = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
        assert np.array_equal(read, values)
    attributes = group["passes/001/logits"].attrs["kdcache"]
    assert attributes["codec"] == store.calibration.codecs["logits"].summary()
    assert attributes["calibration"] == store.calibration.digest


def test_filling_again_changes_nothing(store, stores, tmp_path):
    before = files_of(tmp_path)
    stores["fill"](store, 0)
    assert files_of(tmp_path) == before


def test_a_pass_is_complete_only_with_all_units(tmp_path, spec, stores):
    store = stores["begin"](str(tmp_path / "store"), spec)
    stores["fill"](store, 0, units=[0, 2])
    assert store.committed_units(0) == {0, 2}
    assert store.manifest(0) is None and store.complete_passes() == []
    stores["fill"](store, 0, units=[1])
    manifest = store.manifest(0)
    assert [commit.entries for commit in manifest.commits] == [3, 3, 1]
    for name, stored in manifest.bytes_by_array.items():
        shards = (tmp_path / "store/passes/000" / name / "c").rglob("*")
        assert stored == sum(path.stat().st_size for path in shards if path.is_file()) > 0


def test_orphan_targets_are_adopted(tmp_path, spec, stores):
    """A builder died between writing targets and committing; the next builder's targets differ in the last bit."""
    store = stores["begin"](str(tmp_path / "store"), spec)
    store.create_pass(0)
    rows = unit_of(stores["rows"](spec, 0), spec, 0)
    layouts = store.layouts(0)
    other = {**rows, "logits": rows["logits"] + np.int16(1)}
    for name in (VIEWS, "logits"):
        store.objects.put_new(store.shard_path(layouts[name], 0, 0), layouts[name].encode(other[name]))
    commit = store.put_unit(0, 0, rows, {})
    stands = store.objects.get(store.shard_path(layouts["logits"], 0, 0))
    assert np.array_equal(layouts["logits"].decode(stands, 3), other["logits"])
    assert commit.objects["logits"].size == len(stands)


def test_inputs_of_another_builder_are_respected(tmp_path, spec, stores):
    store = stores["begin"](str(tmp_path / "store"), spec)
    store.create_pass(0)
    rows = unit_of(stores["rows"](spec, 0), spec, 0)
    layouts = store.layouts(0)
    store.objects.put_new(
        store.shard_path(layouts[VIEWS], 0, 0), layouts[VIEWS].encode(rows[VIEWS] + np.int32(1))
    )
    with pytest.raises(StoreMismatchError, match="unit 0 of pass 0"):
        store.put_unit(0, 0, rows, {})
    assert store.committed_units(0) == set()


def test_a_damaged_orphan_is_not_committed(tmp_path, spec, stores):
    store = stores["begin"](str(tmp_path / "store"), spec)
    store.create_pass(0)
    rows = unit_of(stores["rows"](spec, 0), spec, 0)
    layout = store.layouts(0)["logits"]
    store.objects.put_new(store.shard_path(layout, 0, 0), layout.encode(rows["logits"])[:-7])
    with pytest.raises(StoreDamagedError):
        store.put_unit(0, 0, rows, {})
    assert store.committed_units(0) == set()


def test_another_spec_is_refused_with_the_fields(store, stores):
    other = stores["spec"](seed=5)
    with pytest.raises(StoreMismatchError, match="seed: 0, 5"):
        create_store(store.url, other, store.image_ids)


def test_the_calibration_that_stands_is_adopted(store):
    late = Calibration(
        spec_key=store.spec.key,
        codecs={name: Uniform(step=64.0, offsets=(0,)) for name in store.spec.targets},
        canaries=(),
        teacher_check={},
        input_bytes={},
        fidelity={},
    )
    assert store.adopt_calibration(late).digest != late.digest


def test_no_store_and_broken_stores(tmp_path, store):
    with pytest.raises(StoreNotFoundError, match="no store at"):
        open_store(str(tmp_path / "none"))
    for path, text in (("kd/spec.json", "{"), ("kd/spec.json", '{"format": 99}'), ("kd/images.json", "[]")):
        target = tmp_path / "store" / path
        before = target.read_bytes()
        target.write_text(text)
        with pytest.raises(StoreDamagedError):
            open_store(store.url)
        target.write_bytes(before)


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"pass": 0, "units": []}', '{"pass": 0, "units": [{"unit": 0}]}']
)
def test_broken_manifests_are_damage(store, tmp_path, text):
    (tmp_path / "store/kd/passes/000/manifest-0.json").write_text(text)
    with pytest.raises(StoreDamagedError):
        open_store(store.url).manifest(0)


def test_listing_passes_over_other_folders(store, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    assert [found.spec.key for found in list_stores(str(tmp_path)).stores] == [store.spec.key]
    assert list_stores(str(tmp_path / "none")).stores == ()


def test_a_damaged_store_hides_no_other(store, stores, tmp_path, kdcache):
    other = stores["begin"](str(tmp_path / "other"), stores["spec"](seed=1))
    (tmp_path / "other/kd/spec.json").write_text("{")
    found = list_stores(str(tmp_path))
    assert [each.spec.key for each in found.stores] == [store.spec.key]
    assert list(found.unreadable) == [other.url]
    assert choose_store(str(tmp_path)).spec.key == store.spec.key
    code, out, _ = kdcache("ls", "--home", str(tmp_path))
    assert code == 0
    assert "made-up train" in out and f"damaged: {other.url}: " in out
    listed = json.loads(kdcache("ls", "--home", str(tmp_path), "--json")[1])
    assert [each.get("damaged") is None for each in listed] == [True, False]


def test_a_damaged_ledger_hides_no_other_store(store, stores, tmp_path, kdcache):
    stores["begin"](str(tmp_path / "other"), stores["spec"](seed=1))
    (tmp_path / "store/kd/passes/000/manifest-0.json").write_text("{")
    code, out, _ = kdcache("ls", "--home", str(tmp_path))
    assert code == 0
    assert "0/0" in out and f"damaged: {store.url}: " in out


def test_files_that_others_leave_in_the_ledger_are_nothing(store, tmp_path):
    for folder in ("kd/goals", "kd/passes", "kd/passes/000", "kd/passes/000/units"):
        for name in (".nfs0001", ".DS_Store", "notes.txt", "manifest-x.json", "000001-0.json.swp"):
            (tmp_path / "store" / folder / name).write_text("x")
    assert store.goal == 2 and store.complete_passes() == [0, 1]
    assert store.committed_units(0) == {0, 1, 2}


def test_passes_are_in_the_order_of_their_numbers(store, tmp_path):
    (tmp_path / "store/kd/passes/1000").mkdir()
    (tmp_path / "store/kd/passes/200").mkdir()
    assert store.begun_passes() == [0, 1, 200, 1000]


def test_a_folder_of_other_things_is_no_place_for_a_store(tmp_path, spec):
    (tmp_path / "photo.jpg").write_bytes(b"")
    ids = tuple(f"image-{n}" for n in range(7))
    with pytest.raises(UsageError, match=r"neither a store nor empty: it contains photo\.jpg"):
        create_store(str(tmp_path), spec, ids)
    with pytest.raises(KDCacheError, match=r"photo\.jpg") as caught:
        create_store(str(tmp_path / "photo.jpg"), spec, ids)
    assert "a file is in the place of a folder" in (caught.value.hint or "")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_store_begun_for_other_images_is_not_gone_on_with(tmp_path, spec, stores):
    """Another build was killed between the first object and the spec."""
    objects = open_objects(str(tmp_path / "store"))
    objects.put_new("kd/images.json", canonical_json([f"other-{n}" for n in range(7)]))
    with pytest.raises(StoreDamagedError, match="started for other images"):
        stores["begin"](str(tmp_path / "store"), spec)
    assert not objects.put_new("kd/images.json", b"[]") and objects.names("kd") == ["images.json", "tmp"]


def test_images_that_are_not_the_spec_s_are_damage(store, tmp_path):
    (tmp_path / "store/kd/images.json").write_bytes(canonical_json([f"other-{n}" for n in range(7)]))
    with pytest.raises(StoreDamagedError, match="other images"):
        create_store(store.url, store.spec, store.image_ids)


def test_finishing_again_reads_no_record(store, monkeypatch):
    def read(*_):
        raise AssertionError("a record was read")

    monkeypatch.setattr(store, "read_commit", read)
    assert store.finish_pass(0) == store.manifest(0)


@pytest.mark.parametrize(
    "change",
    [{"unit_entries": 0}, {"seed": None}, {"targets": {}}, {"teacher": {}}, {"dataset": {"name": "x"}}],
    ids=lambda change: next(iter(change)),
)
def test_specs_that_cannot_be_are_damage(spec, change):
    with pytest.raises(StoreDamagedError, match="spec is malformed"):
        StoreSpec.from_dict({**spec.to_dict(), **change})


def test_a_store_in_memory_is_the_same(tmp_path, spec, stores, store):
    remote = stores["begin"](f"memory://{tmp_path.name}", spec)
    stores["fill"](remote, 0)
    for unit in range(spec.units_per_pass):
        for layout in store.layouts(0).values():
            path = store.shard_path(layout, 0, unit)
            assert remote.objects.get(path) == store.objects.get(path)
    assert open_store(remote.url).complete_passes() == [0]
