"""A build, whole and interrupted: what it commits never depends on how it went."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.cache.build import BuildOptions, build_store, measure_plan, plan_store
from kdcache.cache.datasets import open_dataset
from kdcache.cache.errors import IncompleteError, KDCacheError, StoreMismatchError, TeacherError
from kdcache.cache.reader import StoreReader
from kdcache.cache.replay import compare_digest, crop_digest, replay
from kdcache.cache.store import create_store, open_store
from kdcache.cache.views import view_policy

DATASET = "streets:48x64:10"
OPTIONS = BuildOptions(batch_size=2, decode_threads=2, force=True)


class TinyTeacher:
    """Seeded stride-8 convolutions with the interface of a Teacher; `poison` makes one of its maps not finite."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.kernels = {
            "logits": torch.randn(19, 3, 8, 8, generator=generator) / 100,
            "features": torch.randn(6, 3, 8, 8, generator=generator) / 100,
        }
        self.poison: int | None = None
        self.calls = 0

    def identity(self):
        return {"name": "tiny", "weights_sha256": str(float(self.kernels["logits"].sum()))}

    def target_shape(self, target, crop):
        return (len(self.kernels[target]), crop[0] // 8, crop[1] // 8)

    def __call__(self, crops, valid):
        x = crops.permute(0, 3, 1, 2).float() / 255 - 0.5
        outputs = {
            name: torch.nn.functional.conv2d(x, kernel, stride=8) for name, kernel in self.kernels.items()
        }
        if self.calls == self.poison:
            outputs["features"][0, 0, 0, 0] = float("nan")
        self.calls += 1
        return outputs


def begin(url, *, dataset=DATASET, teacher=None, **changes):
    images = open_dataset(dataset, None, "train")
    teacher = teacher or TinyTeacher()
    choices = {"seed": 0, "targets": {"logits": "uniform", "features": "fp16"}, "unit_entries": 4, **changes}
    spec = plan_store(images, teacher, view_policy(dataset), **choices)
    return create_store(str(url), spec, images.image_ids), images, teacher


def build(url, *, passes=1, options=OPTIONS, **changes):
    store, images, teacher = begin(url, **changes)
    return build_store(store, images, teacher, passes=passes, options=options)


def shards_of(folder: Path) -> dict[str, bytes]:
    """All of a store but its commit records, which tell of times and machines."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    return {name: data for name, data in named.items() if not re.match(r"kd/(passes/\d+/units|tmp)/", name)}


def test_targets_are_what_the_teacher_says_of_the_replayed_crop(tmp_path):
    build(tmp_path / "store", passes=2)
    store, images, teacher = begin(tmp_path / "store")
    reader = StoreReader(store.url, ["logits", "features"])
    for index in (0, 1):
        seen = set()
        for position in range(10):
            entry = reader.entry(index, position)
            image = entry.row.image_index
            seen.add(image)
            crop = replay(entry.row.view, store.spec.views, images.image(image), images.label(image))
            assert compare_digest(entry.row.digest, crop_digest(crop)) is None
            expected = teacher(torch.from_numpy(crop.image)[None], torch.tensor([[crop.height, crop.width]]))
            for name, codes in entry.codes.items():
                codec = reader.codecs[name]
                decoded = codec.decode(torch.from_numpy(codes)[None])
                bound = codec.error_bound(expected[name]) + 1e-5  # a batch of another size rounds otherwise
                assert ((decoded - expected[name]).abs() <= bound).all()
        assert seen == set(range(10))


def test_an_interrupted_build_ends_in_the_same_bytes(tmp_path):
    build(tmp_path / "whole", passes=2)

    class Stop(Exception):
        pass

    def stop_after(n):
        def progress(done, total, note):
            if done >= n:
                raise Stop

        return progress

    for n in (1, 5, 9, 3):
        store, images, teacher = begin(tmp_path / "cut")
        with pytest.raises(Stop):
            build_store(store, images, teacher, passes=2, options=OPTIONS, progress=stop_after(n))
    result = build(tmp_path / "cut", passes=2)
    assert result.units_before > 0
    assert shards_of(tmp_path / "cut") == shards_of(tmp_path / "whole")


def test_a_complete_store_costs_no_teacher(tmp_path):
    build(tmp_path / "store")
    store, images, teacher = begin(tmp_path / "store")
    result = build_store(store, images, teacher, passes=1, options=OPTIONS)
    assert teacher.calls == 0 and result.units_built == 0 and result.units_before == 3
    assert open_store(store.url).is_complete


def test_more_views_extend_it_without_touching_what_stands(tmp_path):
    build(tmp_path / "store", passes=1)
    before = shards_of(tmp_path / "store")
    assert build(tmp_path / "store", passes=3).units_before == 3
    after = shards_of(tmp_path / "store")
    assert {name: after[name] for name in before} == before
    assert open_store(str(tmp_path / "store")).complete_passes() == [0, 1, 2]


class _Share:
    """One process of several, without their barrier."""

    def __init__(self, rank, world):
        self.process_index, self.num_processes = rank, world

    def wait_for_everyone(self):
        pass


def test_any_number_of_processes_builds_the_same_bytes(tmp_path):
    build(tmp_path / "one", passes=2)
    for rank in range(3):
        store, images, teacher = begin(tmp_path / "three")
        build_store(store, images, teacher, passes=2, options=OPTIONS, state=_Share(rank, 3))
    assert shards_of(tmp_path / "three") == shards_of(tmp_path / "one")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"teacher": TinyTeacher(1)},
        {"dataset": "streets:48x64:11"},
        {"targets": {"logits": "fp16"}},
    ],
    ids=["seed", "teacher", "dataset", "codec"],
)
def test_another_request_is_another_store(tmp_path, change):
    first, _, _ = begin(tmp_path / "store")
    with pytest.raises(StoreMismatchError, match="differing fields"):
        begin(tmp_path / "store", **change)
    other, _, _ = begin(tmp_path / "other", **change)
    assert first.spec.name != other.spec.name


def test_not_finite_targets_stop_the_build_and_name_the_image(tmp_path):
    teacher = TinyTeacher()
    teacher.poison = 8  # calibration takes 5 batches; 2 fill unit 0
    with pytest.raises(
        TeacherError, match=r"features for view 0 of image \S+ are not finite.*unit 1 of pass 0"
    ):
        build(tmp_path / "store", teacher=teacher)
    store = open_store(str(tmp_path / "store"))
    assert 1 not in store.committed_units(0)
    assert "1" not in store.objects.names("passes/000/views/c")


def test_a_teacher_that_looks_like_chance_is_refused(tmp_path):
    options = BuildOptions(batch_size=2, decode_threads=2)
    with pytest.raises(TeacherError):
        build(tmp_path / "store", options=options)
    assert not open_store(str(tmp_path / "store")).is_calibrated


def test_other_crops_cannot_join(tmp_path):
    build(tmp_path / "store")
    store, images, teacher = begin(tmp_path / "store")

    class Edited(type(images)):
        def image(self, index):
            return np.clip(super().image(index), 5, 250)

    images.__class__ = Edited
    with pytest.raises(StoreMismatchError, match="another decoder or resize"):
        build_store(store, images, teacher, passes=2, options=OPTIONS)


def test_units_begun_with_other_inputs_are_left_and_said(tmp_path):
    store, images, teacher = begin(tmp_path / "store")
    build(tmp_path / "elsewhere")
    other = open_store(str(tmp_path / "elsewhere"))
    store.adopt_calibration(other.calibration)
    layout = store.layouts(0)["views"]
    foreign = layout.decode(other.objects.get(other.shard_path(layout, 0, 1)), 4)[::-1].copy()
    store.objects.put_new(store.shard_path(layout, 0, 1), layout.encode(foreign))
    with pytest.raises(IncompleteError, match="0/1"):
        build_store(store, images, teacher, passes=1, options=OPTIONS)
    assert store.committed_units(0) == {0, 2}


def test_the_plan_foretells_the_bytes(tmp_path):
    store, images, teacher = begin(tmp_path / "store")
    plan = measure_plan(store.spec, images, teacher, passes=2, options=OPTIONS)
    assert (plan.entries, plan.units) == (20, 6)
    build(tmp_path / "store", passes=2)
    manifest = open_store(str(tmp_path / "store")).manifest(0)
    for name, size in manifest.bytes_by_array.items():
        assert abs(plan.bytes_per_entry[name] - size / 10) < 0.35 * size / 10, name


def test_a_full_disk_is_one_clear_error(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "passes").write_bytes(b"a file where a folder should be")
    with pytest.raises(KDCacheError, match="cannot write"):
        build(tmp_path / "store")
