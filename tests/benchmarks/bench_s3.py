"""Epochs of the reader over S3, every request 20 ms away: cold over a raw parallel GET of the same objects, and warm
over a local copy of the store. With --faults SHARE also a build and a cold epoch while that share of all requests fails.

The server is SeaweedFS behind a proxy in Python, which is limited to some hundred MB a second. In a cold epoch the waits
matter, so its objects are small, and both sides make the same number of requests at once. In a warm epoch the cost of the
cache's look-up matters, compared with reading an entry, so its entries are as large as those of 512x1024 crops.

Server, proxy, client and reader share this host's cores. If the raw GETs alone keep them busy, a cold epoch is slower by
everything that reading costs. So it is measured twice: with few requests at once, which leave two cores idle, so that
reading can hide behind the waits; and with as many as a run makes. The rows of busy cores show which case is which.
A reader that needs a shard before its fetch has started fetches it itself, with one more request at once: of 744 shards
some 45 with 4 requests at once, 3 with 8.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import fsspec
import numpy as np
import psutil
import torch
from building import build, shards_of
from harness import Row, alternate, finish, median_ratio, ratio
from proxyprocess import ProxyProcess
from seaweed import BUCKET, Seaweed
from torch.utils.data import DataLoader, Dataset, Sampler

from kdcache.cache.codecs.registry import fit_codec
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.storage.shard_cache import CachedShards, ShardCache
from kdcache.cache.store.calibration import Calibration
from kdcache.cache.store.opening import create_store, open_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.spec import VIEWS, DatasetIdentity, StoreSpec, TargetSpec
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import CropDigest, entry_row
from kdcache.cache.views.view import View
from kdcache.distill.data.loader import BATCHES_AHEAD
from kdcache.distill.data.order import EntryOrder
from kdcache.distill.data.prefetch import PARALLEL_FETCHES, ShardPrefetcher
from kdcache.distill.data.targets import StoredViews

LATENCY_S = 0.02
FEW = 4  # requests at once, which leave two cores idle for a third of the time
READ_TIMEOUT_S = 3.0  # of the client: the cost of a silent server; the default of s3fs is 15 s
SMALL, LARGE = (19, 16, 32), (19, 64, 128)  # logits of crops of 128x256 and of 512x1024
UNIT_ENTRIES = 8
BATCH = 8
_FORGET = -1  # in place of positions: see ReadingProcess
# While the entries of the last pool are read, there is nothing left to fetch. That is a fiftieth of an epoch of Cityscapes
# with 2975 images, and a tenth of a much shorter one.
UNITS, QUICK_UNITS = 372, 128
LARGE_UNITS, QUICK_LARGE_UNITS = 48, 16
ROUNDS, QUICK_ROUNDS = 7, 3
WARM_ROUNDS = 3  # for one of the others: a third of a second each
BUILD = {"dataset": "streets:48x64:64", "unit_entries": 4}  # 16 units of three objects and a commit


def run(*, quick: bool, as_json: bool, faults: str = "0") -> int:
    share, rounds = float(faults), QUICK_ROUNDS if quick else ROUNDS
    units, large_units = (QUICK_UNITS, QUICK_LARGE_UNITS) if quick else (UNITS, LARGE_UNITS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Seaweed(folder / "server")
        server.start()
        os.environ.update(server.environment)
        proxy = ProxyProcess(server.endpoint, latency_s=LATENCY_S, silence_s=2 * READ_TIMEOUT_S)
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        try:
            small = Epochs.of(folder / "small", SMALL, units, proxy)
            large = Epochs.of(folder / "large", LARGE, large_units, proxy)
            seconds = alternate(
                {"local epoch": large.read_local, "warm epoch": large.read_warm}, WARM_ROUNDS * rounds
            )
            cold_seconds, rows = cold_against_raw(small, rounds)
            seconds |= cold_seconds
            if share:
                seconds |= _with_faults(folder, proxy, share, 1 if quick else 5)
        finally:
            proxy.stop()
            server.kill()
    warm = median_ratio(seconds["local epoch"], seconds["warm epoch"])
    rows += [
        ratio("warm epoch, speed over a local store", warm, ">= 0.95"),
        Row("objects of a cold epoch", len(small.sizes), ""),
        Row("requests of a cold epoch", small.requests["cold"], ""),
        Row("requests of a warm epoch", large.requests["warm"], ""),
        Row("MB of a cold epoch", sum(small.sizes.values()) / 1e6, "MB"),
    ]
    for what in ("build", "epoch") if share else ():
        slower = median_ratio(seconds[f"{what}, faults"], seconds[f"{what}, none"])
        rows.append(Row(f"{what}, time at {share:.0%} faults over none", slower, ""))
    setting = (
        f"{units} units of {UNIT_ENTRIES} entries, requests of {LATENCY_S * 1000:g} ms, "
        f"cold {FEW} or {PARALLEL_FETCHES} at once"
    )
    return finish("s3", rows, seconds, setting, as_json=as_json)


def cold_against_raw(epochs: "Epochs", rounds: int) -> tuple[dict[str, list[float]], list[Row]]:
    """Seconds and figures of a cold epoch and of raw GETs, with few requests at once and with as many as a run makes."""
    seconds: dict[str, list[float]] = {}
    rows = []
    for at_once in (FEW, PARALLEL_FETCHES):
        raw, cold = f"raw parallel GET, {at_once} at once", f"cold epoch, {at_once} at once"
        busy: dict[str, list[float]] = {raw: [], cold: []}
        sides = {
            raw: watch_cores(partial(epochs.get_all, at_once), busy[raw]),
            cold: watch_cores(partial(epochs.read_cold, at_once), busy[cold]),
        }
        seconds |= alternate(sides, rounds, {cold: epochs.empty_cache})
        speed, what = median_ratio(seconds[raw], seconds[cold]), f"{cold}, speed over raw parallel GET"
        rows += [
            ratio(what, speed, ">= 0.9") if at_once == FEW else Row(what, speed, ""),
            *(Row(f"cores busy, {name}", median(shares[1:]), "") for name, shares in busy.items()),
        ]
    return seconds, rows


def watch_cores(work: Callable[[], None], shares: list[float]) -> Callable[[], None]:
    """Do the work, and add to `shares` the fraction of all cores' time that was not idle, used by any process."""

    def run() -> None:
        before = psutil.cpu_times()
        work()
        after = psutil.cpu_times()
        shares.append(1 - (after.idle - before.idle) / (sum(after) - sum(before)))

    return run


def _with_faults(folder: Path, proxy: ProxyProcess, share: float, rounds: int) -> dict[str, list[float]]:
    """A build and an epoch, and both again with failing requests. The results must be the same."""
    fsspec.config.conf["s3"] = {
        "config_kwargs": {"read_timeout": READ_TIMEOUT_S}
    }  # of clients made from now on
    epochs = Epochs.of(folder / "faults", SMALL, QUICK_UNITS, proxy)
    urls: list[str] = []

    def build_there() -> None:
        urls.append(f"s3://{BUCKET}/build-{len(urls)}")
        build(urls[-1], **BUILD)

    def failing(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            proxy.fail(share)
            work()
            proxy.fail(0.0)

        return run

    seconds = alternate({"build, none": build_there, "build, faults": failing(build_there)}, rounds)
    sides = {"epoch, none": epochs.read_cold, "epoch, faults": failing(epochs.read_cold)}
    seconds |= alternate(sides, rounds, dict.fromkeys(sides, epochs.empty_cache))
    build(folder / "built", **BUILD)
    expected = shards_of(folder / "built")
    for store in map(open_store, urls):
        assert store.is_complete and {path: store.objects.get(path) for path in expected} == expected
    return seconds


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """One store, on S3 and on disk. Opening it is not measured."""

    url: str
    local: "ReadingProcess"
    cold: "ReadingProcess"
    warm: "ReadingProcess"
    cold_shards: CachedShards
    sizes: dict[str, int]  # of its shards
    proxy: ProxyProcess
    requests: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, shape: tuple[int, int, int], units: int, proxy: ProxyProcess) -> "Epochs":
        near, far = str(folder / "store"), f"s3://{BUCKET}/{folder.name}"
        write_store(near, shape, units)
        copy_store(folder / "store", far)
        local, cold, warm = (
            open_views(near, None),
            open_views(far, folder / "cold"),
            open_views(far, folder / "cache"),
        )
        assert cold.reader.cached is not None
        return cls(
            url=far,
            local=ReadingProcess(local),
            cold=ReadingProcess(cold, forgets=True),
            warm=ReadingProcess(warm),
            cold_shards=cold.reader.cached,
            sizes={path: record.size for path, record in cold.reader.cached.records.items()},
            proxy=proxy,
        )

    def get_all(self, at_once: int) -> None:
        objects = open_objects(self.url)
        with ThreadPoolExecutor(at_once) as threads:
            found = threads.map(lambda path: objects.read_range(path, 0, self.sizes[path]), self.sizes)
            assert list(map(len, found)) == list(self.sizes.values())

    def empty_cache(self) -> None:
        self.cold_shards.discard(self.sizes)

    def read_cold(self, at_once: int = PARALLEL_FETCHES) -> None:
        self._count("cold", self.cold, at_once)

    def read_warm(self) -> None:
        self._count("warm", self.warm)

    def read_local(self) -> None:
        self.local.read_epoch()

    def _count(self, what: str, process: "ReadingProcess", at_once: int = PARALLEL_FETCHES) -> None:
        before = self.proxy.requests
        process.read_epoch(at_once)
        self.requests[what] = self.proxy.requests - before


class ReadingProcess:
    """Reads epochs in a separate process, like a run's loader. Their shards are prefetched in this process."""

    def __init__(self, views: StoredViews, *, forgets: bool = False) -> None:
        """`forgets`: at each epoch's beginning, which files it holds open; those of a cache that was emptied are gone."""
        self._batches = _Batches(views, forgets)
        self._loader: DataLoader[None] = DataLoader(
            _Entries(views),
            batch_sampler=self._batches,
            collate_fn=_nothing,
            num_workers=1,
            persistent_workers=True,  # starting a process is not measured
            prefetch_factor=BATCHES_AHEAD,
            multiprocessing_context="forkserver",
        )

    def read_epoch(self, at_once: int = PARALLEL_FETCHES) -> None:
        """Every entry of a pass, in batches."""
        self._batches.at_once = at_once
        for _ in self._loader:
            pass


class _Batches(Sampler[list[int]]):
    """The steps of an epoch. The prefetcher is notified of each when the reading process gets it."""

    def __init__(self, views: StoredViews, forgets: bool) -> None:
        self._views, self._forgets = views, forgets
        self.at_once = PARALLEL_FETCHES

    def __iter__(self) -> Iterator[list[int]]:
        shards, prefetcher = self._views.reader.cached, None
        if shards is not None:
            prefetcher = ShardPrefetcher(self._views, shards, batch_size=BATCH, parallel_fetches=self.at_once)
        if self._forgets:
            yield [_FORGET]
        for step in range(self._views.order.n_images // BATCH):
            if prefetcher is not None:
                prefetcher.advance(step)
            yield list(range(step * BATCH, (step + 1) * BATCH))
        if prefetcher is not None:
            prefetcher.close()


class _Entries(Dataset[None]):
    def __init__(self, views: StoredViews) -> None:
        self._views = views

    def __getitems__(self, positions: list[int]) -> list[None]:
        reader, order = self._views.reader, self._views.order
        if positions == [_FORGET]:
            reader.cached.discard([])
        else:
            reader.entries(0, [order.entry(t)[1] for t in positions])
        return [None]


def _nothing(_: list[None]) -> None:
    pass


def open_views(url: str, cache: Path | None) -> StoredViews:
    reader = StoreReader(url, ["logits"], cache=ShardCache(cache, 10**10) if cache else None)
    order = EntryOrder(passes=(0,), n_images=reader.n_images, unit_entries=UNIT_ENTRIES, pool_units=8, seed=0)
    return StoredViews(reader, order)


def copy_store(folder: Path, url: str) -> None:
    objects = open_objects(url)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(PARALLEL_FETCHES) as threads:
        list(
            threads.map(lambda path: objects.put_new(str(path.relative_to(folder)), path.read_bytes()), files)
        )


def write_store(url: str, shape: tuple[int, int, int], units: int) -> None:
    """A store of one pass of made-up logits."""
    n, (height, width) = units * UNIT_ENTRIES, (8 * shape[1], 8 * shape[2])
    spec = StoreSpec(
        dataset=DatasetIdentity(
            name="made-up", split="train", images=n, fingerprint="0" * 64, class_names=("road",)
        ),
        teacher={"name": "made-up", "weights_sha256": "1" * 64},
        views=ViewPolicy(crop_height_px=height, crop_width_px=width, photometric=False),
        seed=0,
        targets={"logits": TargetSpec(codec="uniform", shape=shape)},
        unit_entries=UNIT_ENTRIES,
    )
    store = create_store(url, spec, tuple(map(str, range(n))))
    codec = fit_codec("uniform", [torch.zeros(1, *shape)])
    store.adopt_calibration(
        Calibration(
            spec_key=spec.key,
            codecs={"logits": codec},
            canaries=(),
            teacher_check={},
            input_bytes={},
            fidelity={},
        )
    )
    store.raise_goal(1)
    store.create_pass(0)
    box = {"box_height": height, "box_width": width, "height": height, "width": width}
    view = View(scale_milli=1000, top=0, left=0, flip=0, **box)
    digest = CropDigest(bytes(16), bytes(16), bytes(192))
    generator = torch.Generator().manual_seed(0)
    for unit in range(units):
        images = range(unit * UNIT_ENTRIES, (unit + 1) * UNIT_ENTRIES)
        codes = codec.encode(4 * torch.randn(UNIT_ENTRIES, *shape, generator=generator))[0].numpy()
        rows = np.stack([entry_row(image, 0, view, digest) for image in images])
        store.put_unit(0, unit, {VIEWS: rows, "logits": codec.pack(codes)}, {})
    store.finish_pass(0)
