"""One wrong bit in any object that a training run could read, or a missing object: it is found before an entry is used, or
does not affect what the run learns from.

KDCACHE_FLIPS sets how many bits are flipped in total: 1,000 for a full measurement.
"""

import dataclasses
import os
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import fsspec
import pytest
import torch
from damaging import KINDS, flipped
from training import build, make_teacher, small_config

from kdcache.cache.errors import KDCacheError, StoreDamagedError, StoreMismatchError, StoreNotFoundError
from kdcache.cache.storage.opening import open_objects
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.inputs import open_inputs
from kdcache.distill.data.loader import read_batches
from kdcache.distill.data.prefetch import ShardPrefetcher
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.training.loop import train

FLIPS = int(os.environ.get("KDCACHE_FLIPS", "60"))  # read at import: tests run without the user's variables
BATCH = 2
UNREAD = {"root", "goal", "commit", "group", "pass"}  # by a run: they are for builders and other readers
STORES = {"replay": "replay", "stored": "jpeg", "remote": "jpeg"}
FOUND = (StoreDamagedError, StoreMismatchError, StoreNotFoundError)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A store of two passes and two units for each way of keeping inputs."""
    folder = tmp_path_factory.mktemp("flips")
    teacher = make_teacher(folder / "teacher.safetensors")
    for kept in set(STORES.values()):
        build(folder / kept, teacher, kept=kept)
    return {name: folder / kept for name, kept in STORES.items()}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, made: dict[str, Path], tmp_path: Path) -> "Damaged":
    if request.param != "remote":
        return Damaged(str(shutil.copytree(made[request.param], tmp_path / "store")))
    url, objects = f"memory://{tmp_path.name}", open_objects(f"memory://{tmp_path.name}")
    for path in made["remote"].rglob("*"):
        if path.is_file():
            objects.put_new(path.relative_to(made["remote"]).as_posix(), path.read_bytes())
    return Damaged(url)


class Damaged:
    """A store to damage and restore, local or remote."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.root = fsspec.core.url_to_fs(url)
        self.objects = {
            kind: sorted(path for path in self.fs.glob(f"{self.root}/{pattern}") if self.fs.isfile(path))
            for kind, pattern in KINDS.items()
        }

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in KINDS if self.objects[kind]]

    def flip(self, path: str, chooser: random.Random) -> Callable[[], None]:
        """Change one bit. Returns a function that restores it."""
        whole = self.fs.cat_file(path)
        self.fs.pipe_file(path, flipped(whole, chooser.randrange(8 * len(whole))))
        return lambda: self.fs.pipe_file(path, whole)

    def delete(self, path: str) -> Callable[[], None]:
        whole = self.fs.cat_file(path)
        self.fs.rm_file(path)
        return lambda: self.fs.pipe_file(path, whole)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("KDCACHE_CACHE", str(tmp_path / "cache"))
    return small_config(
        tmp_path / "run", "none yet", method="logit+feature", steps=8, batch_size=BATCH, save_every_s=0.0
    )


def taken_in(config: TrainConfig, url: str, tmp_path: Path) -> tuple[object, list[torch.Tensor]]:
    """Everything that a run with a new cache reads from the store: what it is pinned to, and the batches of every pass."""
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    inputs = open_inputs(dataclasses.replace(config, store=url), device=torch.device("cpu"))
    views = inputs.stored_views
    assert views is not None
    shards = views.reader.cached
    prefetcher = ShardPrefetcher(views, shards, batch_size=BATCH) if shards is not None else None
    steps = len(views.reader.passes) * views.order.n_images // BATCH
    tensors: list[torch.Tensor] = []
    with closing(
        read_batches(inputs.views, batch_size=BATCH, start_step=0, prefetcher=prefetcher)
    ) as batches:
        for _ in range(steps):
            batch = next(batches)
            tensors += [batch.image, batch.label, batch.valid_size, *inputs.targets(batch).values()]
    for index in views.reader.passes:
        views.reader.require_unchanged(index)
    about = (inputs.identity, inputs.policy, inputs.target_channels, inputs.images.classes, views.order)
    return about, tensors


def is_same(one: tuple[object, list[torch.Tensor]], other: tuple[object, list[torch.Tensor]]) -> bool:
    same = one[0] == other[0] and len(one[1]) == len(other[1])
    return same and all(torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_a_wrong_bit_is_found_or_without_effect(store: Damaged, config: TrainConfig, tmp_path: Path) -> None:
    chooser = random.Random(0)
    whole = taken_in(config, store.url, tmp_path)
    counts = {kind: [0, 0] for kind in store.kinds}  # found, or without effect
    for trial in range(FLIPS // len(STORES)):
        kind = store.kinds[trial % len(store.kinds)]
        path = chooser.choice(store.objects[kind])
        mend = store.flip(path, chooser)
        try:
            assert is_same(taken_in(config, store.url, tmp_path), whole), path
            counts[kind][1] += 1
        except FOUND as error:
            assert "\n" not in str(error) and len(str(error)) < 500
            counts[kind][0] += 1
        mend()
    assert is_same(taken_in(config, store.url, tmp_path), whole)
    print(f"found, without effect: {counts}")
    for kind, (found, without_effect) in counts.items():
        if kind in UNREAD:
            assert found == 0, kind
        # A reader uses shape, type, chunks and codecs of an array's metadata; and nothing about images if crops are stored.
        elif kind not in ("array", "images"):
            assert without_effect == 0, kind


def test_an_object_that_is_gone_is_found_or_without_effect(
    store: Damaged, config: TrainConfig, tmp_path: Path
) -> None:
    whole = taken_in(config, store.url, tmp_path)
    for kind in store.kinds:
        path = store.objects[kind][-1]
        mend = store.delete(path)
        if kind in UNREAD:
            assert is_same(taken_in(config, store.url, tmp_path), whole), path
        elif kind == "manifest":  # then the pass is incomplete, and its entries are not used
            (about, tensors) = taken_in(config, store.url, tmp_path)
            assert len(tensors) == len(whole[1]) // 2 and about[0]["manifests"].keys() == {"0"}
        else:
            with pytest.raises(FOUND):
                taken_in(config, store.url, tmp_path)
        mend()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["stored", "remote"], indirect=True)
def test_an_object_that_goes_in_the_middle_of_a_run_stops_it_or_has_no_effect(
    store: Damaged, config: TrainConfig, tmp_path: Path
) -> None:
    """The run stops with its state saved; once the object is restored, it ends with the same result."""
    config = dataclasses.replace(config, store=store.url, pool_units=1, steps=5)
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"))
    train(whole)
    expected = load_state(Path(whole.out, "checkpoint"))["model"]
    read = [(kind,) for kind in store.kinds if kind not in UNREAD]
    for kinds in [tuple(UNREAD), *read]:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        run = dataclasses.replace(config, out=str(tmp_path / kinds[0]))
        paths = [path for kind in kinds for path in store.objects[kind]]
        mends: list[Callable[[], None]] = []

        def break_it(done: int, total: int, note: str, paths: list = paths, mends: list = mends) -> None:
            if done == 2 and not mends:
                mends += [store.delete(path) for path in paths]

        try:
            train(run, progress=break_it)
        except KDCacheError as error:
            assert kinds in read and error.exit_code == 12, (kinds, error)
            assert load_state(Path(run.out, "checkpoint"))["step"] >= 2
            for mend in mends:
                mend()
            mends.clear()
            train(run, resume=True)
        for mend in mends:
            mend()
        found = load_state(Path(run.out, "checkpoint"))["model"]
        assert all(torch.equal(expected[name], found[name]) for name in expected), kinds
        shutil.rmtree(run.out)  # 150 MB a checkpoint
    shutil.rmtree(whole.out)
