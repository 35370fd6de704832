"""Training from a store on S3: shards prefetched, once, and checked; the same run as from a local store; failures."""

import dataclasses
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from faultproxy import FAULTS
from training import (
    assert_same_run,
    build,
    free_port,
    interrupt_after,
    lines_of,
    note_shard_gets,
    small_config,
    start,
)

from kdcache.cache.errors import KDCacheError, StoreDamagedError, UsageError
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.opening import open_store
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.training.loop import train


@pytest.fixture
def config(shared_store, tmp_path, monkeypatch, no_figures) -> Iterator[TrainConfig]:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    yield small_config(tmp_path / "run", shared_store, method="logit")
    shutil.rmtree(tmp_path)  # 150 MB a checkpoint


def upload(local: str, url: str) -> str:
    """The same store elsewhere, the spec last."""
    remote, root = open_objects(url), Path(local)
    paths = [path for path in root.rglob("*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name == "spec.json"):
        remote.put_new(path.relative_to(root).as_posix(), path.read_bytes())
    return url


@pytest.fixture
def in_memory(shared_store, request) -> str:
    return upload(shared_store, f"memory://{abs(hash(request.node.nodeid)):x}")


@pytest.fixture
def shard_gets(monkeypatch) -> list[str]:
    return note_shard_gets(monkeypatch)


def test_a_run_from_a_remote_store_is_the_local_one_and_fetches_each_shard_once(
    config, in_memory, shard_gets, tmp_path
):
    near = dataclasses.replace(config, out=str(tmp_path / "near"))
    train(near)
    train(dataclasses.replace(config, store=in_memory))
    assert_same_run(near, config)
    assert sorted(shard_gets) == [
        f"passes/00{index}/{name}"
        for index in (0, 1)
        for name in ("logits/c/0/0/0/0", "logits/c/1/0/0/0", "views/c/0/0", "views/c/1/0")
    ]
    again = dataclasses.replace(config, store=in_memory, out=str(tmp_path / "again"), workers=1)
    train(again)  # by a worker, from the cache
    assert_same_run(near, again)
    assert len(shard_gets) == 8


def test_a_resumed_run_fetches_nothing_again(config, in_memory, shard_gets, tmp_path):
    far, near = (
        dataclasses.replace(config, store=in_memory, save_every_steps=3),
        dataclasses.replace(config, out=str(tmp_path / "near")),
    )
    train(near)
    with pytest.raises(KeyboardInterrupt):
        train(far, progress=interrupt_after(4))
    train(far, resume=True)
    assert_same_run(near, far)
    assert len(shard_gets) == len(set(shard_gets)) == 8


def test_a_cache_too_small_is_refused_before_anything_is_written(config, in_memory):
    with pytest.raises(UsageError, match="--cache-limit 1KB leaves 950 B") as caught:
        train(dataclasses.replace(config, store=in_memory, cache_limit_bytes=1000))
    assert "--cache-limit 1MB or more" in caught.value.hint
    assert not Path(config.out).exists()


def test_passes_join_at_an_epoch_s_end_and_a_resumed_run_sees_the_same(config, tmp_path, teacher_file):
    store = build(tmp_path / "store", teacher_file, passes=1, targets=("logits",))
    config = dataclasses.replace(config, store=store, steps=9, follow=True)

    def grow(done: int, total: int, note: str) -> None:
        if done == 2 and "loss" in note:
            build(store, teacher_file, passes=2, targets=("logits",))

    train(config, progress=grow)
    inputs = json.loads(Path(config.out, "inputs.json").read_text())
    assert inputs["joined"] == [{"epoch": 1, "passes": [1]}]
    manifests = {str(index): open_store(store).manifest(index).digest for index in (0, 1)}
    assert inputs["manifests"] == manifests

    copy = dataclasses.replace(config, out=str(tmp_path / "copy"))
    shutil.copytree(config.out, copy.out)
    shutil.rmtree(Path(copy.out, "checkpoint"))
    Path(copy.out, "scores.json").unlink()
    build(store, teacher_file, passes=3, targets=("logits",))
    train(copy, resume=True)  # from the start, in the recorded order; pass 2 comes after epoch 1
    assert lines_of(copy)[:6] == lines_of(config)[:6]
    joined = json.loads(Path(copy.out, "inputs.json").read_text())["joined"]
    assert joined == [{"epoch": 1, "passes": [1]}, {"epoch": 2, "passes": [2]}]

    alone = dataclasses.replace(config, out=str(tmp_path / "alone"), follow=False, steps=3)
    train(alone)
    assert json.loads(Path(alone.out, "inputs.json").read_text())["joined"] == []
    with pytest.raises(UsageError, match="--follow"):
        train(dataclasses.replace(alone, follow=True), resume=True)


@pytest.mark.slow
def test_processes_agree_on_what_joins(config, tmp_path, teacher_file):
    """Two processes: the second pass is completed during the first, and joins both processes at the same epoch."""
    store = build(tmp_path / "store", teacher_file, passes=1, targets=("logits",))
    config = dataclasses.replace(config, store=store, batch_size=4, steps=40, follow=True)
    port = free_port()
    processes = [start(config, rank=rank, processes=2, port=port) for rank in (0, 1)]
    metrics = Path(config.out, "metrics.jsonl")
    while not metrics.exists() or not metrics.read_bytes():
        assert all(process.poll() is None for process in processes)
    build(store, teacher_file, passes=2, targets=("logits",))
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    (joined,) = json.loads(Path(config.out, "inputs.json").read_text())["joined"]
    assert joined["passes"] == [1] and joined["epoch"] >= 1


def test_a_store_that_is_repaired_stops_the_run_at_the_next_epoch_with_its_state_kept(
    config, tmp_path, shared_store
):
    store = Path(shutil.copytree(shared_store, tmp_path / "store"))
    config = dataclasses.replace(config, store=str(store), save_every_s=0.0)

    def repair(done: int, total: int, note: str) -> None:
        if done == 2 and "loss" in note:
            opened = open_store(str(store))
            for index in (0, 1):
                manifest = opened.manifest(index)
                assert manifest is not None
                again = tuple(dataclasses.replace(commit, generation=1) for commit in manifest.commits)
                opened.put_manifest(dataclasses.replace(manifest, commits=again))

    with pytest.raises(StoreDamagedError, match="was repaired or removed") as caught:
        train(config, progress=repair)
    assert caught.value.exit_code == 12
    assert load_state(Path(config.out, "checkpoint"))["step"] == 3
    with pytest.raises(StoreDamagedError, match="repaired"):
        train(config, resume=True)


@pytest.mark.slow
def test_a_run_on_a_server_that_fails_is_the_one_on_a_whole_one(
    config, faulty, impatient, bucket, tmp_path, teacher_file
):
    store = build(tmp_path / "store", teacher_file, passes=3, targets=("logits",), unit_entries=1)
    near = dataclasses.replace(config, store=store, steps=9, out=str(tmp_path / "near"))
    train(near)
    upload(store, bucket)
    faulty.fail(0.2, seed=2)
    far = dataclasses.replace(near, store=bucket, out=str(tmp_path / "far"))
    train(far)
    assert_same_run(near, far)
    assert set(faulty.injected) == set(FAULTS)


@pytest.mark.parametrize("denied", [pytest.param("ledger", marks=pytest.mark.slow), "shards"])
def test_credentials_that_expire_in_a_run_stop_it_with_its_state_kept(
    config, faulty, bucket, tmp_path, shared_store, denied
):
    near = dataclasses.replace(config, out=str(tmp_path / "near"))
    train(near)
    upload(shared_store, bucket)
    far = dataclasses.replace(config, store=bucket, save_every_steps=0, save_every_s=0.0)
    order = EntryOrder(passes=(0, 1), n_images=6, unit_entries=4, pool_units=8, seed=config.seed)
    if denied == "shards":  # of the second epoch, three steps later
        faulty.denied = rf"passes/00{order.pass_index(1)}/\w+/c/"

    def expire(done: int, total: int, note: str) -> None:
        if done == 2 and denied == "ledger":
            faulty.denied = "."

    with pytest.raises(KDCacheError, match="cannot read s3://") as caught:
        train(far, progress=expire)
    assert caught.value.exit_code == 1 and "AWS_SESSION_TOKEN" in caught.value.hint
    assert load_state(Path(far.out, "checkpoint"))["step"] == 3
    faulty.denied = ""
    train(far, resume=True)
    assert_same_run(near, far)


@pytest.mark.slow
@pytest.mark.parametrize("array", ["views", "logits"])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "remote"])
@pytest.mark.parametrize("damage", ["bit", "gone"])
def test_damage_of_any_shard_stops_the_run_before_it_is_used(
    config, tmp_path, shared_store, remote, array, damage, request
):
    """Once the object is restored, the run continues and ends with the same result."""
    store = Path(shutil.copytree(shared_store, tmp_path / "store"))
    url = upload(str(store), f"memory://{abs(hash(request.node.nodeid)):x}") if remote else str(store)
    config = dataclasses.replace(config, store=url, steps=4, save_every_s=0.0)
    fs, root = fsspec.core.url_to_fs(url)
    chooser = random.Random(array)
    broken = {}
    for path in fs.find(f"{root}/passes/001/{array}/c") + fs.find(f"{root}/passes/000/{array}/c"):
        data = bytearray(fs.cat_file(path))
        broken[path] = bytes(data)
        row = len(data) // 3
        data[chooser.randrange(row)] ^= 1 << chooser.randrange(8)
        fs.rm(path) if damage == "gone" else fs.pipe_file(path, bytes(data))
    with pytest.raises(StoreDamagedError) as caught:
        train(config)
    assert array in str(caught.value) and "\n" not in str(caught.value)
    for path, data in broken.items():
        fs.pipe_file(path, data)
    assert train(config, resume=True).steps == 4
