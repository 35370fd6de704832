"""Epochs of the reader over S3, every request 20 ms away: cold over a raw parallel GET of the same objects, and warm
over a local copy of the store.

The server is SeaweedFS behind a proxy in Python, which alone carries some hundred MB a second: objects are small, so that
waiting for requests is what is measured and the proxy is not. Both sides have as many requests under way.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from faultproxy import FaultProxy
from harness import Row, alternate, finish, median_ratio, ratio
from seaweed import BUCKET, Seaweed

from kdcache.cache.calibration import Calibration
from kdcache.cache.codecs import fit_codec
from kdcache.cache.reader import StoreReader
from kdcache.cache.replay import CropDigest, entry_row
from kdcache.cache.shardcache import ShardCache
from kdcache.cache.spec import VIEWS, DatasetIdentity, StoreSpec, TargetSpec
from kdcache.cache.storage import open_objects
from kdcache.cache.store import create_store
from kdcache.cache.views import View, ViewPolicy
from kdcache.distill.ahead import FETCHES, Ahead
from kdcache.distill.order import EntryOrder
from kdcache.distill.targets import StoredViews

LATENCY_S = 0.02
SHAPE = (19, 16, 32)  # of logits
UNIT_ENTRIES = 8
BATCH = 8
UNITS, QUICK_UNITS = 256, 64
ROUNDS, QUICK_ROUNDS = 7, 3


def run(*, quick: bool, as_json: bool) -> int:
    units, rounds = (QUICK_UNITS, QUICK_ROUNDS) if quick else (UNITS, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        server = Seaweed(Path(folder) / "server")
        server.start()
        os.environ.update(server.environment)
        proxy = FaultProxy(server.endpoint, latency_s=LATENCY_S)
        proxy.start()
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        try:
            bench = Bench.of(Path(folder), units, proxy)
            seconds = alternate({"raw parallel GET": bench.get_all, "cold epoch": bench.read_cold}, rounds)
            seconds |= alternate({"local epoch": bench.read_local, "warm epoch": bench.read_warm}, rounds)
        finally:
            proxy.stop()
            server.kill()
    cold = median_ratio(seconds["raw parallel GET"], seconds["cold epoch"])
    warm = median_ratio(seconds["local epoch"], seconds["warm epoch"])
    rows = [
        ratio("cold epoch, speed over raw parallel GET", cold, ">= 0.9"),
        ratio("warm epoch, speed over a local store", warm, ">= 0.95"),
        Row("objects of an epoch", len(bench.sizes), ""),
        Row("requests of a cold epoch", bench.requests["cold"], ""),
        Row("requests of a warm epoch", bench.requests["warm"], ""),
        Row("MB of an epoch", sum(bench.sizes.values()) / 1e6, "MB"),
        Row("MB a second, cold", sum(bench.sizes.values()) / 1e6 / min(seconds["cold epoch"]), "MB/s"),
    ]
    setting = (
        f"{units} units of {UNIT_ENTRIES} entries, {FETCHES} requests at once, {LATENCY_S * 1000:g} ms each"
    )
    return finish("s3", rows, seconds, setting, as_json=as_json)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One store, on S3 and on disk; opening it is in no figure."""

    url: str
    local: StoredViews
    cold: StoredViews
    warm: StoredViews
    sizes: dict[str, int]  # of its shards
    proxy: FaultProxy
    requests: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, units: int, proxy: FaultProxy) -> "Bench":
        near, far = str(folder / "store"), f"s3://{BUCKET}/store"
        write_store(near, units)
        copy_store(folder / "store", far)
        warm = open_views(far, folder / "cache")
        assert warm.reader.cached is not None
        sizes = {path: record.size for path, record in warm.reader.cached.records.items()}
        local, cold = open_views(near, None), open_views(far, folder / "cold")
        return cls(url=far, local=local, cold=cold, warm=warm, sizes=sizes, proxy=proxy)

    def get_all(self) -> None:
        objects = open_objects(self.url)
        with ThreadPoolExecutor(FETCHES) as threads:
            found = threads.map(lambda path: objects.read_range(path, 0, self.sizes[path]), self.sizes)
            assert list(map(len, found)) == list(self.sizes.values())

    def read_cold(self) -> None:
        assert self.cold.reader.cached is not None
        self.cold.reader.cached.discard(self.sizes)
        self._count("cold", self.cold)

    def read_warm(self) -> None:
        self._count("warm", self.warm)

    def read_local(self) -> None:
        read_epoch(self.local)

    def _count(self, what: str, views: StoredViews) -> None:
        before = sum(self.proxy.requests.values())
        read_epoch(views)
        self.requests[what] = sum(self.proxy.requests.values()) - before


def read_epoch(views: StoredViews) -> None:
    """Every entry of a pass, in batches, with its shards fetched ahead."""
    shards = views.reader.cached
    ahead = Ahead(views, shards, batch_size=BATCH) if shards is not None else None
    for step in range(views.order.n_images // BATCH):
        if ahead is not None:
            ahead.advance(step)
        views.reader.entries(0, [position for _, position in views.order.batch_entries(step, BATCH)])
    if ahead is not None:
        ahead.close()


def open_views(url: str, cache: Path | None) -> StoredViews:
    reader = StoreReader(url, ["logits"], cache=ShardCache(cache, 10**10) if cache else None)
    order = EntryOrder(passes=(0,), n_images=reader.n_images, unit_entries=UNIT_ENTRIES, pool_units=8, seed=0)
    return StoredViews(reader, order)


def copy_store(folder: Path, url: str) -> None:
    objects = open_objects(url)
    files = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(FETCHES) as threads:
        list(
            threads.map(lambda path: objects.put_new(str(path.relative_to(folder)), path.read_bytes()), files)
        )


def write_store(url: str, units: int) -> None:
    """A store of one pass of made-up logits."""
    n = units * UNIT_ENTRIES
    spec = StoreSpec(
        dataset=DatasetIdentity(
            name="made-up", split="train", images=n, fingerprint="0" * 64, class_names=("road",)
        ),
        teacher={"name": "made-up", "weights_sha256": "1" * 64},
        views=ViewPolicy(crop_height_px=128, crop_width_px=256, photometric=False),
        seed=0,
        targets={"logits": TargetSpec(codec="uniform", shape=SHAPE)},
        unit_entries=UNIT_ENTRIES,
    )
    store = create_store(url, spec, tuple(map(str, range(n))))
    codec = fit_codec("uniform", [torch.zeros(1, *SHAPE)])
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
    view = View(scale_milli=1000, top=0, left=0, box_height=128, box_width=256, height=128, width=256, flip=0)
    digest = CropDigest(bytes(16), bytes(16), bytes(192))
    generator = torch.Generator().manual_seed(0)
    for unit in range(units):
        images = range(unit * UNIT_ENTRIES, (unit + 1) * UNIT_ENTRIES)
        codes = codec.encode(4 * torch.randn(UNIT_ENTRIES, *SHAPE, generator=generator))[0].numpy()
        rows = np.stack([entry_row(image, 0, view, digest) for image in images])
        store.put_unit(0, unit, {VIEWS: rows, "logits": codec.pack(codes)}, {})
    store.finish_pass(0)
