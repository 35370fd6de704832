"""Transfer: a store copied to another place, several objects at once, each checked against the ledger on its way.

What a reader trusts comes last, as in a build: a unit's commit after its objects, a pass's manifest after its units. So
a copy that dies leaves nothing half visible, and the same copy again goes on. Everything is created once: what stands
already is read and compared, never written over. A pass may be copied without some of its targets; `kd/partial` then
says which arrays are here, and a later copy of the rest completes it.
"""

import logging
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.errors import StoreDamagedError, StoreMismatchError
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.objects import ObjectRecord
from kdcache.cache.storage.opening import probe_creation
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.ledger import Commit, Manifest
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.store import Store, pass_folder

logger = logging.getLogger(__name__)

DEFAULT_WORKERS = 8  # fewer than the connections that an S3 client keeps open, 10
MAX_BYTES_IN_FLIGHT = 512 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferResult:
    """What a copy did."""

    objects_copied: int  # shards; a store's few small records are not counted
    bytes_copied: int
    objects_found: int  # that an earlier copy had left at their place without a commit: read, and right
    seconds: float
    incomplete_passes: tuple[int, ...]  # that were asked for, and are not complete at the source


def copy_store(
    source: Store,
    url: str,
    *,
    targets: Collection[str] | None = None,
    passes: slice | None = None,
    workers: int = DEFAULT_WORKERS,
    progress: Progress = silent,
) -> TransferResult:
    """Copy what of `source` is missing at `url`. `progress` counts bytes.

    Args:
        targets: by default all that the source has; inputs always come along.
        passes: by default all of which something is committed.
        workers: units copied at once, fewer where their objects are large.

    Raises:
        StoreMismatchError: the source lacks one of `targets`; or another store, calibration or object stands at `url`.
        StoreDamagedError: an object of the source is not what its ledger says.
    """
    began = time.monotonic()
    arrays = _choose_arrays(source, targets)
    begun = source.begun_passes()
    asked = begun if passes is None else _asked(passes, begun)
    target = _begin_target(source, url)
    here, held = source.partial_passes(), target.partial_passes()
    plans = [
        _plan_pass(
            source, target, index, arrays, here=here.get(index, set(source.arrays)), held=held.get(index)
        )
        for index in asked
        if index in begun
    ]
    if any(plan.units for plan in plans):
        _prove_creation(target)
    copier = _Copier(source, target, sum(plan.bytes for plan in plans), workers, progress)
    for plan in plans:
        copier.copy(plan)
    incomplete = () if passes is None else tuple(i for i in asked if i not in source.complete_passes())
    return TransferResult(
        objects_copied=copier.objects_copied,
        bytes_copied=copier.bytes_copied,
        objects_found=copier.objects_found,
        seconds=time.monotonic() - began,
        incomplete_passes=incomplete,
    )


def _asked(passes: slice, begun: list[int]) -> list[int]:
    """The passes of a slice; without an end those that are begun, never what a source's goal may claim."""
    end = max(begun, default=-1) + 1 if passes.stop is None else passes.stop
    return list(range(passes.start or 0, end))


def _choose_arrays(source: Store, targets: Collection[str] | None) -> tuple[str, ...] | None:
    """Inputs and the targets asked for; None for whatever a pass has."""
    if targets is None:
        return None
    if missing := sorted(set(targets) - set(source.spec.targets)):
        raise StoreMismatchError(
            f"{redact(source.url)} holds {', '.join(source.spec.targets)}, not {', '.join(missing)}",
            hint=f"--targets with some of {','.join(source.spec.targets)}",
        )
    return tuple(name for name in source.arrays if name in source.spec.input_packings or name in targets)


def _begin_target(source: Store, url: str) -> Store:
    """The store at `url`, begun where there is none: spec, images, calibration and goal are the source's."""
    calibration = source.calibration
    target = create_store(url, source.spec, source.image_ids)
    target.objects.remove_leftovers()
    stands = target.calibration if target.is_calibrated else target.adopt_calibration(calibration)
    if stands.digest != calibration.digest:
        raise StoreMismatchError(
            f"{redact(url)} was calibrated by another build than {redact(source.url)}: their targets do not mix",
            hint="copy to a new place",
        )
    target.raise_goal(source.goal)
    return target


def _prove_creation(target: Store) -> None:
    """Have `target` look before every put where its storage would write over what came since it was listed."""
    if not probe_creation(target.objects):
        logger.warning(
            "%s cannot be relied on to create an object only once: nobody else may write there during the copy",
            redact(target.url),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnitPlan:
    """A unit to be settled: objects to copy, and its commit to put or compare."""

    commit: Commit
    arrays: tuple[str, ...]
    committed: bool  # at the target

    @property
    def bytes(self) -> int:
        return sum(self.commit.objects[name].size for name in self.arrays)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PassPlan:
    """What of a pass is missing at the target."""

    index: int
    arrays: tuple[str, ...]  # that the target will have, earlier copies' aside
    partial: bool
    manifest: Manifest | None  # of the source
    units: tuple[_UnitPlan, ...] = ()
    stands: frozenset[str] = frozenset()  # paths of shards at the target

    @property
    def bytes(self) -> int:
        return sum(unit.bytes for unit in self.units)


def _plan_pass(
    source: Store,
    target: Store,
    index: int,
    arrays: tuple[str, ...] | None,
    *,
    here: set[str],  # arrays at the source
    held: set[str] | None,  # whole ones at the target, where it is a partial copy of this pass
) -> _PassPlan:
    arrays = arrays or tuple(name for name in source.arrays if name in here)
    if missing := [name for name in arrays if name not in here]:
        raise StoreMismatchError(
            f"{redact(source.url)} is a copy without {', '.join(missing)} of pass {index}",
            hint="copy from where it was copied from",
        )
    manifest, theirs = source.manifest(index), target.manifest(index)
    commits = manifest.commits if manifest else tuple(source.commits(index).values())
    partial = held is not None or set(arrays) != set(source.arrays)
    plan = _PassPlan(index=index, arrays=arrays, partial=partial, manifest=manifest)
    if theirs is not None:
        for mine in commits:
            _require_same(mine, theirs.commits[mine.unit], target)
        if held is None or set(arrays) <= held:
            return plan
    generations = target.generations(index)
    units = []
    for commit in commits:
        committed = commit.unit in generations
        if committed and generations[commit.unit] != commit.generation:
            raise _mismatch(target, f"unit {commit.unit} of pass {index} is there in another generation")
        vouched = set(source.arrays) if committed and held is None else held or set()
        left = tuple(name for name in arrays if name not in vouched)
        units.append(_UnitPlan(commit=commit, arrays=left, committed=committed))
    stands = frozenset(stored.path for stored in target.objects.walk(pass_folder(index)))
    return replace(plan, units=tuple(units), stands=stands)


@dataclass(slots=True)
class _Copier:
    """Copies passes, a few units at once, and counts."""

    source: Store
    target: Store
    total_bytes: int
    workers: int
    progress: Progress
    objects_copied: int = 0
    bytes_copied: int = 0
    objects_found: int = 0
    _done_bytes: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def copy(self, plan: _PassPlan) -> None:
        """Settle all units of a pass, then put what makes it readable."""
        if not plan.units:
            return
        if plan.partial:
            self.target.mark_partial(plan.index)
        self.target.create_pass(plan.index, plan.arrays)
        layouts = self.source.layouts(plan.index)
        self._in_parallel(plan, layouts)
        if plan.manifest is not None:
            for name in plan.arrays if plan.partial else ():
                self.target.mark_held(plan.index, name)
            self.target.put_manifest(plan.manifest)

    def _in_parallel(self, plan: _PassPlan, layouts: dict[str, ArrayLayout]) -> None:
        largest = max(layouts[name].max_shard_bytes for name in plan.arrays)
        recorded = (unit.commit.objects[name].size for unit in plan.units for name in unit.arrays)
        largest = min(largest, max(recorded, default=1))
        pool = ThreadPoolExecutor(
            max(1, min(self.workers, MAX_BYTES_IN_FLIGHT // max(1, largest))), thread_name_prefix="copy"
        )
        try:
            futures = [pool.submit(self._settle_unit, plan, unit, layouts) for unit in plan.units]
            for future in as_completed(futures):
                future.result()
        finally:  # after an error or Ctrl-C the objects in hand are finished, and nothing else is begun
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        self._stopped.clear()

    def _settle_unit(self, plan: _PassPlan, unit: _UnitPlan, layouts: dict[str, ArrayLayout]) -> None:
        commit = unit.commit
        for name in unit.arrays:
            if self._stopped.is_set():
                return
            path = self.source.shard_path(layouts[name], plan.index, commit.unit)
            self._settle_object(path, commit.objects[name], stands=path in plan.stands)
        if unit.committed:
            stands = self.target.commit_of(plan.index, commit.unit, commit.generation)
        else:
            # A manifest's commits say nothing of how they were built; the records themselves do.
            record = self.source.commit_of(plan.index, commit.unit, commit.generation)
            _require_same(commit, record, self.source)
            stands = self.target.put_commit(record)
        _require_same(commit, stands, self.target)

    def _settle_object(self, path: str, record: ObjectRecord, *, stands: bool) -> None:
        if not stands:
            data = _read_checked(self.source, path, record)
            stands = not self.target.objects.put_new(path, data)
        if stands and ObjectRecord.of(self.target.objects.get(path)) != record:
            raise _mismatch(self.target, f"{path} stands and differs from the source's")
        with self._counting:
            self.objects_found += stands
            self.objects_copied += not stands
            self.bytes_copied += 0 if stands else record.size
            self._done_bytes += record.size
            self.progress(self._done_bytes, self.total_bytes, "")


def _read_checked(source: Store, path: str, record: ObjectRecord) -> bytes:
    """An object of the source, whole. Raises StoreDamagedError where it is not what the ledger says."""
    try:
        data = source.objects.read_range(path, 0, record.size + 1)  # one more shows that it ends there
    except FileNotFoundError as error:
        raise StoreDamagedError(f"{error} is missing", hint=_DAMAGED_HINT) from None
    if ObjectRecord.of(data) != record:
        raise StoreDamagedError(
            f"{redact(source.url)}/{path} is not the {record.size:,} bytes that the ledger says",
            hint=_DAMAGED_HINT,
        )
    return data


def _require_same(mine: Commit, theirs: Commit, where: Store) -> None:
    """Raises StoreMismatchError for commits of one unit that name different objects."""
    if mine.to_dict(built=False) != theirs.to_dict(built=False):
        raise _mismatch(where, f"unit {mine.unit} of pass {mine.pass_index} was built or repaired by others")


def _mismatch(store: Store, what: str) -> StoreMismatchError:
    return StoreMismatchError(
        f"{redact(store.url)}: {what}; nothing is written over",
        hint="copy to a new place, or `kdcache rm` this one",
    )


_DAMAGED_HINT = "restore it from a copy"
