"""Builds, complete and interrupted: what they commit does not depend on interruptions."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import ClassVar

import numpy as np
import pytest
import torch
from building import DATASET, OPTIONS, TinyTeacher, begin, build, shards_of

from kdcache.cache.build.build import build_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.build.plan import measure_plan
from kdcache.cache.errors import (
    DataError,
    IncompleteError,
    KDCacheError,
    StoreMismatchError,
    TeacherError,
    UsageError,
)
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.progress import silent
from kdcache.cache.storage.local import TEMP_FOLDER, LocalObjects
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.storage.speed import measure_storage
from kdcache.cache.store.opening import list_stores, open_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.views.replay import compare_digest, crop_digest, replay


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
                bound = codec.error_bound(expected[name]) + 1e-5  # a batch of another size rounds differently
                assert ((decoded - expected[name]).abs() <= bound).all()
        assert seen == set(range(10))


def test_codecs_are_chosen_in_steps_of_their_own(tmp_path):
    """The bar was at 100 % for as long as that takes."""
    store, images, teacher = begin(tmp_path / "store")
    seen = []
    build_store(store, images, teacher, passes=1, options=OPTIONS, progress=lambda *said: seen.append(said))
    names = sorted(store.spec.targets)
    chosen = [said for said in seen if said[2].startswith("choosing the codec of ")]
    assert [said[:2] for said in chosen] == [(n, len(names)) for n in range(len(names))]
    assert sorted(said[2].rpartition(" ")[2] for said in chosen) == names
    assert (len(names), len(names), "codecs chosen") in seen


def test_an_interrupted_build_ends_in_the_same_bytes(tmp_path):
    build(tmp_path / "whole", passes=2)

    class Stop(Exception):
        pass

    def stop_after(n):
        def progress(done, total, note):
            if done >= n and note.startswith("pass"):
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


class _Process:
    """One of several processes (here a thread), with the part of accelerate's PartialState that a build uses."""

    def __init__(self, rank, barrier):
        self.process_index, self.num_processes = rank, barrier.parties
        self.wait_for_everyone = lambda: barrier.wait(timeout=60)


def test_any_number_of_processes_builds_the_same_bytes(tmp_path):
    build(tmp_path / "one", passes=2)
    barrier = Barrier(3)

    def build_share(rank):
        store, images, teacher = begin(tmp_path / "three")
        state = _Process(rank, barrier)
        return build_store(store, images, teacher, passes=2, options=OPTIONS, state=state)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(build_share, range(3)))
    assert sum(result.units_built for result in results) == 6
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
    with pytest.raises(StoreMismatchError, match="Differing fields"):
        begin(tmp_path / "store", **change)
    other, _, _ = begin(tmp_path / "other", **change)
    assert first.spec.name != other.spec.name


def test_not_finite_targets_stop_the_build_and_name_the_image(tmp_path):
    teacher = TinyTeacher()
    teacher.poison = 15  # calibration takes 12 batches; 2 fill unit 0
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


# The index of a shard counts too, most of all in a short shard.
@pytest.mark.parametrize("unit_entries", [4, 64])
def test_the_plan_foretells_the_bytes(tmp_path, unit_entries):
    store, images, teacher = begin(tmp_path / "store", unit_entries=unit_entries)
    plan = measure_plan(store.spec, images, teacher, passes=2, options=OPTIONS)
    units = 2 * store.spec.units_per_pass
    assert (plan.entries, plan.units, plan.units_committed, plan.entries_left) == (20, units, 0, 20)
    assert plan.batches_left == 10
    assert plan.bytes_left == plan.total_bytes
    build(tmp_path / "store", passes=2, unit_entries=unit_entries)
    manifest = open_store(str(tmp_path / "store")).manifest(0)
    for name, size in manifest.bytes_by_array.items():
        assert plan.bytes_per_entry[name] == pytest.approx(size / 10, rel=0.1), name


def test_a_plan_is_refused_where_the_build_would_be(tmp_path):
    store, images, teacher = begin(tmp_path / "store")
    with pytest.raises(TeacherError, match="chance"):
        measure_plan(store.spec, images, teacher, passes=1, options=BuildOptions(batch_size=2))


def test_what_is_left_is_told_before_the_first_unit(tmp_path):
    store, images, teacher = begin(tmp_path / "store")
    announced = []
    for passes in (1, 1, 3):
        build_store(store, images, teacher, passes=passes, options=OPTIONS, on_remaining=announced.append)
    # Nothing is reported if nothing is left.
    assert [remaining.entries_left for remaining in announced] == [10, 20]
    manifests = [open_store(store.url).manifest(index) for index in range(3)]
    written = [sum(manifest.bytes_by_array.values()) for manifest in manifests]
    assert announced[0].bytes_left == pytest.approx(written[0], rel=0.1)
    assert announced[1].bytes_left == pytest.approx(written[1] + written[2], rel=0.1)
    assert all(remaining.seconds_left > 0 for remaining in announced)


def test_the_plan_knows_what_stands_and_writes_nothing(tmp_path):
    build(tmp_path / "store")
    before = shards_of(tmp_path / "store")
    store, images, teacher = begin(tmp_path / "store")
    plans = [
        measure_plan(store.spec, images, teacher, passes=passes, options=OPTIONS, store=store)
        for passes in (1, 2)
    ]
    assert [(plan.units, plan.units_committed, plan.entries_left) for plan in plans] == [
        (3, 3, 0),
        (6, 3, 10),
    ]
    assert plans[0].bytes_left == plans[0].seconds_left == 0
    assert plans[1].bytes_left == plans[1].total_bytes / 2
    assert shards_of(tmp_path / "store") == before


def test_the_plan_of_a_teacher_that_is_not_finite(tmp_path):
    store, images, teacher = begin(tmp_path / "store")
    teacher.poison = 0
    with pytest.raises(TeacherError, match="not finite"):
        measure_plan(store.spec, images, teacher, passes=1, options=OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit_entries": 10**6}, "unit entries must be from 1 to 4096"),
        ({"unit_entries": 0}, "unit entries must be from 1 to 4096"),
        ({"targets": {"depth": "fp16"}}, "depth"),
        ({"targets": {}}, "no target"),
    ],
)
def test_requests_that_make_no_sense(tmp_path, change, message):
    class Willing(TinyTeacher):
        def target_shape(self, target, crop):
            return 19, crop[0] // 8, crop[1] // 8

    with pytest.raises(UsageError, match=message):
        begin(tmp_path / "store", teacher=Willing(), **change)


def test_units_that_fill_the_memory_are_refused(tmp_path):
    class Wide(TinyTeacher):
        def target_shape(self, target, crop):
            return 4096, 512, 512

    with pytest.raises(UsageError, match="GiB of memory") as caught:
        begin(tmp_path / "store", teacher=Wide())
    assert caught.value.hint == "--unit-entries 1 or less"


def test_no_views_are_refused(tmp_path):
    with pytest.raises(UsageError, match="views must be at least 1"):
        build(tmp_path / "store", passes=0)


def test_batches_are_no_larger_than_units(tmp_path):
    class Counting(TinyTeacher):
        sizes: ClassVar[set[int]] = set()

        def __call__(self, crops, valid_size, targets=None):
            self.sizes.add(len(crops))
            return super().__call__(crops, valid_size, targets)

    build(tmp_path / "store", teacher=Counting(), options=BuildOptions(batch_size=64, force=True))
    assert Counting.sizes == {4}


def ends_promptly(url, error, match=None, *, images=None, progress=silent):
    """Build until it fails, and check that no thread is left behind. Returns the store."""
    store, streets, teacher = begin(url)
    with pytest.raises(error, match=match):
        build_store(store, images or streets, teacher, passes=2, options=OPTIONS, progress=progress)
    assert not [t for t in threading.enumerate() if t.name.startswith(("decode", "write"))]
    return store


def test_an_interrupt_leaves_committed_units_and_no_threads(tmp_path):
    def interrupt(done, total, note):
        if note.startswith("pass") and done == 8:
            raise KeyboardInterrupt

    store = ends_promptly(tmp_path / "store", KeyboardInterrupt, progress=interrupt)
    assert store.committed_units(0) <= {0, 1}
    assert not store.objects.names(TEMP_FOLDER)
    build(tmp_path / "store", passes=2)
    build(tmp_path / "whole", passes=2)
    assert shards_of(tmp_path / "store") == shards_of(tmp_path / "whole")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    class Corrupt(type(open_dataset(DATASET, None, "train"))):
        reads = 0

        def image(self, index):
            Corrupt.reads += 1
            if Corrupt.reads > 40:  # calibration and canaries take 28, the first unit 4
                raise DataError(f"cannot decode /data/{self.image_ids[index]}.png")
            return super().image(index)

    images = open_dataset(DATASET, None, "train")
    images.__class__ = Corrupt
    store = ends_promptly(tmp_path / "store", DataError, r"cannot decode /data/\S+\.png", images=images)
    assert store.committed_units(0) >= {0}


def test_a_disk_that_fills_up_stops_the_teacher(tmp_path, monkeypatch):
    real = LocalObjects.put_new

    def full(self, path, data):
        if path.startswith("passes/000/logits/c/1"):
            raise KDCacheError("cannot write: No space left on device")
        return real(self, path, data)

    monkeypatch.setattr(LocalObjects, "put_new", full)
    seen = []

    def wait_for_the_writer(done, total, note):
        seen.append((note, done))
        time.sleep(0.2)

    store = ends_promptly(tmp_path / "store", KDCacheError, "No space left", progress=wait_for_the_writer)
    assert store.committed_units(0) == {0}
    assert seen[-1][0] == "pass 0"  # not after all 20 entries


def test_leftovers_of_a_killed_builder_go(tmp_path):
    store, *_ = begin(tmp_path / "store")
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE, check=True
    )
    left = tmp_path / "store" / TEMP_FOLDER / f"{os.uname().nodename}-{int(dead.stdout)}-0"
    left.write_bytes(b"half a shard")
    build(tmp_path / "store")
    assert store.objects.names(TEMP_FOLDER) == []


def test_a_manifest_that_a_killed_builder_did_not_write(tmp_path):
    build(tmp_path / "store", passes=2)
    whole = shards_of(tmp_path / "store")
    (tmp_path / "store/kd/passes/001/manifest-0.json").unlink()
    assert not open_store(str(tmp_path / "store")).is_complete
    result = build(tmp_path / "store", passes=1)  # fewer views than there are
    assert result.units_built == 0
    assert shards_of(tmp_path / "store") == whole


def test_a_store_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "passes").write_bytes(b"a file where a folder should be")
    with pytest.raises(KDCacheError, match="cannot write"):
        build(tmp_path / "store")


FACTORY = '''
"""A teacher of one seeded convolution."""
import time
import torch
from torch import nn
from kdcache.cache.teachers.teacher import FactoryTeacher


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 19, 8, stride=8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.conv.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10

    def forward(self, images):
        time.sleep(0.1)
        return {"logits": self.conv(images), "features": self.conv(images)[:, :8]}


def make():
    return FactoryTeacher(module=Tiny(), version="1")
'''


def build_request(folder: Path, name: str, views: int = 2) -> list[str]:
    """`kdcache build` of a factory teacher into folder/name."""
    (folder / "tiny_teacher.py").write_text(FACTORY)
    teacher = ["--teacher", "tiny_teacher:make", "--force", "--device", "cpu", "--threads", "1"]
    sizes = ["--views", str(views), "--batch-size", "2", "--unit-entries", "2"]
    return ["build", "--dataset", "streets:48x96:12", "--store", str(folder / name), *teacher, *sizes]


def build_process(folder: Path, request: list[str], *launcher: str) -> subprocess.Popen:
    """The same in a separate process."""
    # Background jobs of a shell ignore interrupts, and child processes inherit that; this process must not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "kdcache.cli", *request],
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_of_accelerate_build_the_same_bytes(tmp_path, kdcache, monkeypatch):
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    process = build_process(tmp_path, build_request(tmp_path, "two"), *launcher)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, errors = kdcache(*build_request(tmp_path, "one"))
    assert code == 0, errors
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert shards_of(tmp_path / "two") == shards_of(tmp_path / "one")


@pytest.mark.slow
def test_ctrl_c_ends_a_build_with_130(tmp_path):
    with build_process(tmp_path, build_request(tmp_path, "store", views=50)) as process:
        while process.poll() is None and not [*(tmp_path / "store").glob("kd/passes/*/units/*.json")]:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "error: interrupted"
    assert "Traceback" not in errors
    assert open_store(str(tmp_path / "store")).committed_units(0)


@pytest.fixture(scope="module")
def s3_server():
    """An S3 server in this process, which keeps its objects in memory; its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """The URL of an empty bucket, reached as a user would, by AWS_* variables alone."""
    import s3fs

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access-key-of-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key-of-tests")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    name = request.node.name.replace("_", "-")[:60].rstrip("-")
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


def test_s3_objects_are_created_once(bucket):
    objects = open_objects(f"{bucket}/home/store")
    assert objects.names("") == []
    assert objects.put_new("a/b", b"first")
    assert not objects.put_new("a/b", b"second")
    assert objects.put_new("a/b", b"first")  # a retry after the first reply was lost
    assert objects.put_same("a/b", b"third") == b"first"
    assert (objects.names("a"), objects.names("none"), objects.size("a/b")) == (["b"], [], 5)
    assert objects.read_range("a/b", 1, 3) == b"irs"
    for read in (objects.get, objects.size, lambda path: objects.read_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("a/none")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: objects.put_new("raced", bytes([n]) * 10_000), range(8)))
    assert sum(won) == 1
    assert objects.get("raced") == bytes([won.index(True)]) * 10_000


def test_a_store_on_s3_holds_the_bytes_of_a_local_one(bucket, tmp_path):
    build(tmp_path / "store")
    url = f"{bucket}/home/store"
    build(url)
    assert build(url).units_built == 0
    here, there = (StoreReader(place, ["logits", "features"]) for place in (str(tmp_path / "store"), url))
    assert there.spec == here.spec
    for position, theirs in zip((0, 7, 9), there.entries(0, [0, 7, 9]), strict=True):
        mine = here.entry(0, position)
        assert mine.row == theirs.row
        assert all(np.array_equal(mine.codes[name], theirs.codes[name]) for name in mine.codes)
    assert [store.spec.key for store in list_stores(f"{bucket}/home").stores] == [here.spec.key]


def test_a_probe_of_s3_is_removed(bucket):
    open_objects(bucket).put_new("kept", b"x")
    speed = measure_storage(f"{bucket}/home", object_bytes=10_000, piece_bytes=1000)
    assert speed.write_bytes_per_s > 0 and speed.read_bytes_per_s > 0
    assert open_objects(bucket).names("") == ["kept"]


def test_s3_that_cannot_be_used_is_one_clear_error(bucket):
    with pytest.raises(KDCacheError, match=r"cannot write s3://no-such-bucket/store/\S+: ") as caught:
        build("s3://no-such-bucket/store")
    assert "key-of-tests" not in str(caught.value) and "\n" not in str(caught.value)
