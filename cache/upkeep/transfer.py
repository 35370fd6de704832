"""Transfer: a store is copied to another place, several objects at once, each checked against the ledger on the way.

What a reader trusts is written last, as in a build: a unit's commit after its objects, a pass's manifest after its
units. So a copy that dies leaves nothing half visible, and the same copy continues later. Everything is created once:
what exists is read and compared, and never overwritten. A pass may be copied without some of its targets. Then
`kd/partial` says which arrays are here, and a later copy of the others completes the pass.
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

DEFAULT_WORKERS = 8  # fewer than the 10 connections that an S3 client keeps open
MAX_BYTES_IN_FLIGHT = 512 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferResult:
    """The outcome of a copy."""

    objects_copied: int  # shards; the few small records are not counted
    bytes_copied: int
    # Already there without a commit, from an interrupted copy; they were read and are right
    objects_found: int
    seconds: float
    incomplete_passes: tuple[int, ...]  # asked for, but not complete in the source


def copy_store(
    source: Store,
    url: str,
    *,
    targets: Collection[str] | None = None,
    passes: slice | None = None,
    workers: int = DEFAULT_WORKERS,
    progress: Progress = silent,
) -> TransferResult:
    """Copy to `url` what it lacks of `source`. `progress` counts bytes.

    Args:
        targets: default: all that the source has; inputs are always copied.
        passes: default: all that have a committed unit.
        workers: units copied at once; fewer if their objects are large.

    Raises:
        StoreMismatchError: the source lacks one of `targets`; or another store, calibration or object is at `url`.
        StoreDamagedError: an object of the source differs from its ledger.
    """
    began = time.monotonic()
    arrays = _choose_arrays(source, targets)
    begun = source.begun_passes()
    asked = begun if passes is None else _asked(passes, begun)
    target = _open_target(source, url)
    here, there = source.partial_passes(), target.partial_passes()
    plans = [
        _plan_pass(
            source, target, index, arrays, here=here.get(index, set(source.arrays)), there=there.get(index)
        )
        for index in asked
        if index in begun
    ]
    if any(plan.units for plan in plans):
        _probe_creation(target)
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
    """The passes of a slice. Without an end, those that are begun: a goal may claim any number."""
    end = max(begun, default=-1) + 1 if passes.stop is None else passes.stop
    return list(range(passes.start or 0, end))


def _choose_arrays(source: Store, targets: Collection[str] | None) -> tuple[str, ...] | None:
    """Inputs and the targets asked for; None for all arrays that a pass has."""
    if targets is None:
        return None
    if missing := sorted(set(targets) - set(source.spec.targets)):
        raise StoreMismatchError(
            f"{redact(source.url)} contains {', '.join(source.spec.targets)}, not {', '.join(missing)}",
            hint=f"choose --targets from {','.join(source.spec.targets)}",
        )
    return tuple(name for name in source.arrays if name in source.spec.input_packings or name in targets)


def _open_target(source: Store, url: str) -> Store:
    """The store at `url`, created if it does not exist, with the source's spec, images, calibration and goal."""
    calibration = source.calibration
    target = create_store(url, source.spec, source.image_ids)
    target.objects.remove_leftovers()
    adopted = target.calibration if target.is_calibrated else target.adopt_calibration(calibration)
    if adopted.digest != calibration.digest:
        raise StoreMismatchError(
            f"{redact(url)} was calibrated by another build than {redact(source.url)}: do not mix their targets",
            hint="copy to another URL",
        )
    target.raise_goal(source.goal)
    return target


def _probe_creation(target: Store) -> None:
    """Make `target` look before every put if its storage would overwrite an object that was created meanwhile."""
    if not probe_creation(target.objects):
        logger.warning(
            "%s may create an object twice: nobody else may write there during the copy",
            redact(target.url),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _UnitPlan:
    """What to do for a unit: objects to copy, and a commit to write or compare."""

    commit: Commit
    arrays: tuple[str, ...]
    committed: bool  # at the target

    @property
    def bytes(self) -> int:
        return sum(self.commit.objects[name].size for name in self.arrays)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PassPlan:
    """What the target lacks of a pass."""

    index: int
    arrays: tuple[str, ...]  # to copy; the target may have others from earlier copies
    partial: bool
    manifest: Manifest | None  # of the source
    units: tuple[_UnitPlan, ...] = ()
    existing: frozenset[str] = frozenset()  # paths of shards at the target

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
    there: set[str] | None,  # complete arrays at the target; None unless it is a partial copy of this pass
) -> _PassPlan:
    arrays = arrays or tuple(name for name in source.arrays if name in here)
    if missing := [name for name in arrays if name not in here]:
        raise StoreMismatchError(
            f"{redact(source.url)} is a copy without {', '.join(missing)} of pass {index}",
            hint="copy from its original instead",
        )
    manifest, theirs = source.manifest(index), target.manifest(index)
    commits = manifest.commits if manifest else tuple(source.commits(index).values())
    partial = there is not None or set(arrays) != set(source.arrays)
    plan = _PassPlan(index=index, arrays=arrays, partial=partial, manifest=manifest)
    if theirs is not None:
        for mine in commits:
            _require_same(mine, theirs.commits[mine.unit], target)
        if there is None or set(arrays) <= there:
            return plan
    generations = target.generations(index)
    units = []
    for commit in commits:
        committed = commit.unit in generations
        if committed and generations[commit.unit] != commit.generation:
            raise _mismatch(target, f"unit {commit.unit} of pass {index} has another generation")
        # A commit at the target vouches for all arrays; at a partial copy only for those marked as complete.
        complete = set(source.arrays) if committed and there is None else there or set()
        left = tuple(name for name in arrays if name not in complete)
        units.append(_UnitPlan(commit=commit, arrays=left, committed=committed))
    existing = frozenset(stored.path for stored in target.objects.walk(pass_folder(index)))
    return replace(plan, units=tuple(units), existing=existing)


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
        """Copy all units of a pass, then write what makes the pass readable."""
        if not plan.units:
            return
        if plan.partial:  # before the first commit, or a reader could take the pass for a full one
            self.target.mark_partial(plan.index)
        self.target.create_pass(plan.index, plan.arrays)
        layouts = self.source.layouts(plan.index)
        self._in_parallel(plan, layouts)
        if plan.manifest is not None:
            for name in plan.arrays if plan.partial else ():
                self.target.mark_array_complete(plan.index, name)
            self.target.put_manifest(plan.manifest)

    def _in_parallel(self, plan: _PassPlan, layouts: dict[str, ArrayLayout]) -> None:
        largest = max(layouts[name].max_shard_bytes for name in plan.arrays)
        # Memory is limited by the largest object of this copy, and by what the codec allows: a record may claim more.
        recorded = (unit.commit.objects[name].size for unit in plan.units for name in unit.arrays)
        largest = min(largest, max(recorded, default=1))
        pool = ThreadPoolExecutor(
            max(1, min(self.workers, MAX_BYTES_IN_FLIGHT // max(1, largest))), thread_name_prefix="copy"
        )
        try:
            futures = [pool.submit(self._copy_unit, plan, unit, layouts) for unit in plan.units]
            for future in as_completed(futures):
                future.result()
        finally:  # after an error or Ctrl-C the objects in flight are finished, and nothing new is started
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
        self._stopped.clear()

    def _copy_unit(self, plan: _PassPlan, unit: _UnitPlan, layouts: dict[str, ArrayLayout]) -> None:
        commit = unit.commit
        for name in unit.arrays:
            if self._stopped.is_set():
                return
            path = self.source.shard_path(layouts[name], plan.index, commit.unit)
            self._copy_object(path, commit.objects[name], exists=path in plan.existing)
        if unit.committed:
            stored = self.target.commit_of(plan.index, commit.unit, commit.generation)
        else:
            # The commits in a manifest do not say how the unit was built; the records do.
            record = self.source.commit_of(plan.index, commit.unit, commit.generation)
            _require_same(commit, record, self.source)
            stored = self.target.put_commit(record)
        _require_same(commit, stored, self.target)

    def _copy_object(self, path: str, record: ObjectRecord, *, exists: bool) -> None:
        if not exists:
            data = _read_checked(self.source, path, record)
            exists = not self.target.objects.put_new(path, data)
        if exists and ObjectRecord.of(self.target.objects.get(path)) != record:
            raise _mismatch(self.target, f"{path} exists and differs from the source's")
        with self._counting:
            self.objects_found += exists
            self.objects_copied += not exists
            self.bytes_copied += 0 if exists else record.size
            self._done_bytes += record.size
            self.progress(self._done_bytes, self.total_bytes, "")


def _read_checked(source: Store, path: str, record: ObjectRecord) -> bytes:
    """An object of the source. Raises StoreDamagedError if it differs from what the ledger records."""
    try:
        # One byte more shows an object that is too long
        data = source.objects.read_range(path, 0, record.size + 1)
    except FileNotFoundError as error:
        raise StoreDamagedError(f"{error} is missing", hint=_DAMAGED_HINT) from None
    if ObjectRecord.of(data) != record:
        raise StoreDamagedError(
            f"{redact(source.url)}/{path} is not the {record.size:,} bytes that the ledger records",
            hint=_DAMAGED_HINT,
        )
    return data


def _require_same(mine: Commit, theirs: Commit, where: Store) -> None:
    """Raises StoreMismatchError if two commits of one unit list different objects."""
    if mine.to_dict(built=False) != theirs.to_dict(built=False):
        raise _mismatch(
            where, f"unit {mine.unit} of pass {mine.pass_index} was built or repaired by somebody else"
        )


def _mismatch(store: Store, what: str) -> StoreMismatchError:
    return StoreMismatchError(
        f"{redact(store.url)}: {what}; nothing is overwritten",
        hint="copy to another URL, or remove this store with `kdcache rm`",
    )


_DAMAGED_HINT = "restore it from a copy, or repair the source with `kdcache verify STORE --repair`"
