"""Damage: an object that differs from what the rest of the store says about it; and a check of a unit's shards."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from kdcache.cache.build.leases import UnitId
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
    """One object that differs from what the rest of the store says about it."""

    path: str
    what: str
    unit_id: UnitId | None = None  # if it is a commit or a shard
    array: str | None = None  # if it is a shard
    expected: bytes | None = None  # its right bytes, if they follow from other objects

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def unit_damage(
    store: Store, layouts: Mapping[str, ArrayLayout], commit: Commit, *, deep: bool
) -> Iterator[Damage]:
    """The damaged shards of a unit. Checks their size; with `deep` each is read, hashed and decoded."""
    unit_id = (commit.pass_index, commit.unit)
    inputs: dict[
        str, bytes
    ] = {}  # intact shards of inputs: to check labels, their views and crops are needed
    for name, layout in layouts.items():
        path, record = store.shard_path(layout, *unit_id), commit.objects[name]
        try:
            if not deep:
                what = _wrong_size(store.objects.size(path), record)
            else:
                # One byte more shows a shard that is too long
                shard = store.objects.read_range(path, 0, record.size + 1)
                what = None if sha256(shard) == record.sha256 else "differs from the ledger's digest"
                if what is None:
                    if name in store.spec.input_packings:
                        inputs[name] = shard
                    _decode(store, layout, name, inputs, shard, commit.entries)
        except FileNotFoundError:
            what = "is missing"
        except StoreDamagedError as error:
            # It is what was committed, but a hostile or faulty builder committed nonsense
            what = str(error)
        if what is not None:
            yield Damage(path=path, what=what, unit_id=unit_id, array=name)


def _wrong_size(size: int, record: ObjectRecord) -> str | None:
    return None if size == record.size else f"has {size} bytes, but the ledger records {record.size}"


def _decode(
    store: Store, layout: ArrayLayout, name: str, inputs: Mapping[str, bytes], shard: bytes, entries: int
) -> None:
    """Decode every row as a reader would, one at a time: a unit may not fit memory. Raises StoreDamagedError."""
    spec = store.spec
    for number, row in enumerate(_rows(layout, shard, entries)):
        where = f"{name}, row {number}"
        if name == VIEWS:
            require_row_of(spec, row, where)
        elif name == LABELS and spec.inputs != REPLAY and {VIEWS, CROPS} <= inputs.keys():
            views, crops = (
                next(_rows(store.layouts(0)[other], inputs[other], 1, start=number))
                for other in (VIEWS, CROPS)
            )
            read_crop(spec, {CROPS: crops, LABELS: row}, require_row_of(spec, views, where), where)
        elif name in spec.targets:
            try:
                codes = store.calibration.codecs[name].unpack(row)
            except ValueError as error:
                raise StoreDamagedError(f"{where} does not unpack: {error}") from None
            if codes.dtype.kind == "f" and not np.isfinite(codes).all():
                raise StoreDamagedError(f"{where} is not finite")


def _rows(layout: ArrayLayout, shard: bytes, count: int, *, start: int = 0) -> Iterator[np.ndarray]:
    index = layout.read_index(shard[-layout.index_bytes :], len(shard), layout.name)
    for number, (offset, size) in enumerate(index[start : start + count].tolist(), start=start):
        if offset == EMPTY:
            raise StoreDamagedError(f"{layout.name}, row {number} is missing")
        row = layout.empty_rows(1)[0]
        layout.unpack(shard[offset : offset + size], row, f"{layout.name}, row {number}")
        yield row
