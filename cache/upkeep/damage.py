"""Damage: an object that is not what something else says of it; and how the shards of a unit are held against its commit."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kdcache.cache.build.leases import Place
from kdcache.cache.codecs.shards import EMPTY, ArrayLayout
from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.objects import ObjectRecord, sha256
from kdcache.cache.store.ledger import Commit
from kdcache.cache.store.reader import read_crop, require_row_of
from kdcache.cache.store.spec import VIEWS
from kdcache.cache.store.store import Store
from kdcache.cache.views.crops import CROPS, LABELS, REPLAY


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """One object that is not what something else says of it."""

    path: str
    what: str
    place: Place | None = None  # whose commit or shard it is
    array: str | None = None  # of a shard
    expected: bytes | None = None  # where its bytes follow from others

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def unit_damage(
    store: Store, layouts: Mapping[str, ArrayLayout], commit: Commit, *, deep: bool
) -> Iterator[Damage]:
    """The damaged shards of a unit; with `deep` each is read, hashed and decoded, else only its size is looked at."""
    place = (commit.pass_index, commit.unit)
    inputs: dict[str, bytes] = {}  # shards that are right: labels are cut as their views and crops say
    for name, layout in layouts.items():
        path, record = store.shard_path(layout, *place), commit.objects[name]
        try:
            if not deep:
                what = _wrong_size(store.objects.size(path), record)
            else:
                shard = store.objects.read_range(path, 0, record.size + 1)
                what = None if sha256(shard) == record.sha256 else "is not what the ledger's digest says"
                if what is None:
                    if name in store.spec.input_packings:
                        inputs[name] = shard
                    _decode(store, layout, name, inputs, shard, commit.entries)
        except FileNotFoundError:
            what = "is missing"
        except StoreDamagedError as error:  # it is what was committed, and that is no shard of this store
            what = str(error)
        if what is not None:
            yield Damage(path=path, what=what, place=place, array=name)


def _wrong_size(size: int, record: ObjectRecord) -> str | None:
    return None if size == record.size else f"has {size} bytes, not the {record.size} of the ledger"


def _decode(
    store: Store, layout: ArrayLayout, name: str, inputs: Mapping[str, bytes], shard: bytes, entries: int
) -> None:
    """Decode every row as a reader would, one at a time: a unit need not fit into memory. Raises StoreDamagedError."""
    spec = store.spec
    for place, row in enumerate(_rows(layout, shard, entries)):
        where = f"{name}, row {place}"
        if name == VIEWS:
            require_row_of(spec, row, where)
        elif name == LABELS and spec.inputs != REPLAY and {VIEWS, CROPS} <= inputs.keys():
            views, crops = (
                next(_rows(store.layouts(0)[other], inputs[other], 1, start=place))
                for other in (VIEWS, CROPS)
            )
            read_crop(spec, {CROPS: crops, LABELS: row}, require_row_of(spec, views, where), where)
        elif name in spec.targets:
            try:
                codes = store.calibration.codecs[name].unpack(row)
            except ValueError as error:
                raise StoreDamagedError(f"{where} cannot be unpacked: {error}") from None
            if codes.dtype.kind == "f" and not np.isfinite(codes).all():
                raise StoreDamagedError(f"{where} is not finite")


def _rows(layout: ArrayLayout, shard: bytes, count: int, *, start: int = 0) -> Iterator[np.ndarray]:
    index = layout.read_index(shard[-layout.index_bytes :], len(shard), layout.name)
    for place, (offset, size) in enumerate(index[start : start + count].tolist(), start=start):
        if offset == EMPTY:
            raise StoreDamagedError(f"{layout.name}, row {place} is missing")
        row = layout.empty_rows(1)[0]
        layout.unpack(shard[offset : offset + size], row, f"{layout.name}, row {place}")
        yield row
