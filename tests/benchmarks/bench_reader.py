"""Random entries, one by one and 16 at a time: kdcache's reader over zarr-python, tensorstore and a memory map.

All read the same shards, from the page cache, on one thread each, like a worker of the loader. The memory map contains the
unpacked codes. Decompression alone, of bytes already in memory, is the limit for every reader of these shards.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore
import torch
import torch.nn.functional as F
import zarr
from harness import Row, alternate, finish, median_ratio, ratio
from torch import Tensor

from kdcache.cache.codecs.registry import Codec, fit_codec
from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.storage.opening import open_objects
from kdcache.cache.store.reader import ShardedArray, read_rows

BATCH = 16
ROUNDS = 15
MAP = (64, 128)
BACKGROUND = (
    96  # directions in which made-up features vary: about as many as `auto` keeps for a trained teacher
)
CODECS = {"logits": ("dct:0.5", "uniform"), "features": ("dct:0.5:128", "uniform")}
ENTRIES = {"logits": (512, 64), "features": (64, 16)}  # and those of a unit, one shard
QUICK_ENTRIES = {"logits": (64, 32), "features": (16, 8)}

Read = Callable[[Sequence[int]], object]  # of the entries at some positions


def run(*, quick: bool, as_json: bool) -> int:
    rows: list[Row] = []
    seconds: dict[str, list[float]] = {}
    for target, codecs in CODECS.items():
        for request in codecs:
            entries, unit_entries = (QUICK_ENTRIES if quick else ENTRIES)[target]
            with tempfile.TemporaryDirectory() as folder:
                array = write_array(Path(folder), target, request, entries, unit_entries)
                for mode, sides in array.sides().items():
                    what = f"{target}, {request}, {mode}"
                    timed = alternate({name: array.turns(read) for name, read in sides.items()}, ROUNDS)
                    rows += compare(what, mode, timed)
                    seconds |= {f"{what}: {name}": values for name, values in timed.items()}
    return finish("reader", rows, seconds, f"rounds of {BATCH} random entries", as_json=as_json)


def compare(what: str, mode: str, seconds: dict[str, list[float]]) -> list[Row]:
    """kdcache's reader against each of the others, and against the limit."""
    own = seconds["own"]
    over = {name: median_ratio(values, own) for name, values in seconds.items()}
    best = median_ratio(seconds["zarr-python"], seconds["decompression"])
    rows = [
        ratio(f"{what}: over zarr-python", over["zarr-python"], ">= 3" if mode == "single" else ">= 1.0"),
        Row(f"{what}: decompression alone over zarr-python", best, ""),
        ratio(f"{what}: over tensorstore", over["tensorstore"], ">= 1.0"),
        Row(f"{what}: over a memory map", over["memory map"], ""),
        Row(f"{what}: part that is decompression", over["decompression"], ""),
    ]
    if "two threads" in seconds:
        rows.append(Row(f"{what}: two threads over one", 1 / over["two threads"], ""))
    return [*rows, Row(f"{what}: entries a second", BATCH / min(own), "/s")]


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchArray:
    """One array on disk, and all readers of it."""

    own: ShardedArray
    folder: Path
    decoded: np.ndarray  # a memory map

    def sides(self) -> dict[str, dict[str, Read]]:
        """By mode, then by reader."""
        by_zarr = zarr.open_array(str(self.folder), mode="r")
        by_tensorstore = open_tensorstore(self.folder)
        packed = [self.pack(position) for position in range(len(self.decoded))]
        room = self.own.layout.empty_rows(1)[0]
        singles: dict[str, Callable[[int], object]] = {
            "own": self.own.row,
            "zarr-python": by_zarr.__getitem__,
            "tensorstore": lambda position: by_tensorstore[position].read().result(),
            "memory map": lambda position: self.decoded[position].copy(),
            "decompression": lambda position: self.own.layout.unpack(packed[position], room, "x"),
        }
        batches: dict[str, Read] = {
            "own": lambda positions: read_rows([self.own], positions),
            # zarr-python's `oindex`, which reads several at once, is ten times slower on shards than reading one after the other.
            "zarr-python": lambda positions: np.stack([by_zarr[position] for position in positions]),
            "tensorstore": lambda positions: by_tensorstore[list(positions)].read().result(),
            "memory map": lambda positions: self.decoded[list(positions)],
            "decompression": partial(each, singles["decompression"]),
        }
        if len(os.sched_getaffinity(0)) > 1:
            pool = ThreadPoolExecutor(2)
            batches["two threads"] = lambda positions: list(
                pool.map(lambda half: read_rows([self.own], half), (positions[::2], positions[1::2]))
            )
        return {
            "single": {name: partial(each, read) for name, read in singles.items()},
            f"batches of {BATCH}": batches,
        }

    def turns(self, read: Read) -> Callable[[], object]:
        """Every call reads the next entries, in an order that is the same for all readers."""
        order = random_positions(len(self.decoded))
        return lambda: read(list(islice(order, BATCH)))

    def pack(self, position: int) -> bytes:
        """An entry's compressed bytes, as in the shard."""
        self.own.row(position)
        return self.own.objects.read_range(*self.own.row_range(position))


def each(read: Callable[[int], object], positions: Sequence[int]) -> None:
    for position in positions:
        read(position)


def random_positions(n: int) -> Iterator[int]:
    """Positions in an order in which each comes once before any comes again."""
    generator = np.random.default_rng(0)
    while True:
        yield from generator.permutation(n).tolist()


def open_tensorstore(folder: Path) -> Any:
    """Opened with its best settings for one thread: it caches indexes of shards, not decoded entries."""
    limits = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}}
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**21}, **limits})
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(folder)},
        "recheck_cached_data": False,
    }
    return tensorstore.open(spec, context=context).result()


def write_array(folder: Path, target: str, request: str, entries: int, unit_entries: int) -> BenchArray:
    """An array as a store has it, of made-up targets."""
    generator = torch.Generator().manual_seed(0)
    codec = fit_codec(request, [make_targets(target, generator) for _ in range(8)])
    packing = codec.packing(tuple(make_targets(target, generator).shape[1:]))  # type: ignore[arg-type]
    layout = ArrayLayout.of_packing(target, packing, rows=entries, unit_entries=unit_entries)
    (folder / target).mkdir()
    (folder / target / "zarr.json").write_bytes(layout.metadata())
    decoded = np.lib.format.open_memmap(
        folder / "decoded.npy", mode="w+", dtype=layout.dtype, shape=(entries, *layout.row_shape)
    )
    sizes = []
    for unit in range(-(-entries // unit_entries)):
        places = range(unit * unit_entries, min(entries, (unit + 1) * unit_entries))
        for place in places:
            decoded[place] = encode(codec, make_targets(target, generator))
        shard = layout.encode(np.asarray(decoded[places.start : places.stop]))
        path = folder / target / layout.shard_path(unit)
        path.parent.mkdir(parents=True)
        path.write_bytes(shard)
        sizes.append(len(shard))
    own = ShardedArray(open_objects(str(folder)), layout, np.array(sizes), target)
    return BenchArray(own=own, folder=folder / target, decoded=decoded)


def encode(codec: Codec, values: Tensor) -> np.ndarray:
    return codec.pack(codec.encode(values)[0].numpy())[0]  # type: ignore[no-any-return]


def make_targets(target: str, generator: torch.Generator) -> Tensor:
    """One entry's target, (1, C, 64, 128): smooth random maps with a little noise; features pass a ReLU."""
    if target == "logits":
        return 4 * smooth(19, 8, generator) + 0.8 * smooth(19, 2, generator) + noise(19, generator)
    mixing = torch.randn(512, BACKGROUND, generator=torch.Generator().manual_seed(1)) / BACKGROUND**0.5
    latent = smooth(BACKGROUND, 8, generator) + 0.5 * smooth(BACKGROUND, 2, generator)
    return F.relu(torch.einsum("ck,nkyx->ncyx", mixing, latent) + noise(512, generator) - 0.3)


def smooth(channels: int, factor: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(1, channels, MAP[0] // factor, MAP[1] // factor, generator=generator)
    return F.interpolate(coarse, size=MAP, mode="bilinear")


def noise(channels: int, generator: torch.Generator) -> Tensor:
    return 0.05 * torch.randn(1, channels, *MAP, generator=generator)
