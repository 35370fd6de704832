"""The build: every planned view goes once through the teacher, and its targets go into the store.

After any crash the next build continues after the last committed unit. Any number of builders share the units of a
store by leases; it makes no difference whether they are processes of one job or of several. If the storage cannot
create an object only once, the processes of one job split the units by rank, and nobody else may build.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate import PartialState

from kdcache.cache.build.assignment import Assignment, FixedAssignment, LeasedAssignment
from kdcache.cache.build.builder import Builder, BuildOptions
from kdcache.cache.build.disk_space import RemainingWork, remaining_work, require_disk_space
from kdcache.cache.build.leases import UnitId
from kdcache.cache.codecs.request import canonical_request
from kdcache.cache.errors import IncompleteError, UsageError
from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.cache.progress import Progress, silent
from kdcache.cache.storage.opening import probe_creation
from kdcache.cache.store.spec import DatasetIdentity, StoreSpec, TargetSpec, default_unit_entries
from kdcache.cache.store.store import Store
from kdcache.cache.teachers.teacher import Teacher
from kdcache.cache.views.crops import REPLAY, canonical_inputs, crop_packings
from kdcache.cache.views.policy import ViewPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildResult:
    """The outcome of one build, for this process alone."""

    units_built: int
    units_before: int  # committed by any process before this build began
    entries_built: int
    seconds: float


def plan_store(
    dataset: SegmentationDataset,
    teacher: Teacher,
    policy: ViewPolicy,
    *,
    seed: int,
    targets: Mapping[str, str],  # target -> codec request
    inputs: str = REPLAY,
    unit_entries: int | None = None,
) -> StoreSpec:
    """The spec of the store for these choices.

    Raises:
        UsageError: an unknown codec, a target that the teacher does not have, or a unit that is too large.
    """
    crop, inputs = policy.crop_size, canonical_inputs(inputs)
    stored = {} if inputs == REPLAY else crop_packings(crop)
    specs = {
        name: TargetSpec(codec=canonical_request(request, shape[0]), shape=shape)
        for name, request in targets.items()
        for shape in [teacher.target_shape(name, crop)]
    }
    return StoreSpec(
        dataset=DatasetIdentity(
            name=dataset.name,
            split=dataset.split,
            images=len(dataset),
            fingerprint=dataset.fingerprint(),
            class_names=tuple(dataset.classes.names),
        ),
        teacher=teacher.identity(),
        views=policy,
        seed=seed,
        targets=specs,
        inputs=inputs,
        unit_entries=default_unit_entries(specs, stored) if unit_entries is None else unit_entries,
    )


def build_store(
    store: Store,
    dataset: SegmentationDataset,
    teacher: Teacher,
    *,
    passes: int,
    options: BuildOptions,
    state: PartialState | None = None,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
    on_remaining: Callable[[RemainingWork], None] = lambda remaining: None,
) -> BuildResult:
    """Complete `passes` passes of `store`, from its present state, together with any other builders.

    Args:
        state: this process's rank in its job, if it is one of several.
        report: is called with lines about the calibration and about how units are shared.
        on_remaining: is called with what is left to do before the first unit, if anything is left.

    Raises:
        UsageError: the disk has too little space for what is left to write (unless forced).
        TeacherError: the teacher looks like chance or misaligned, or gave NaN, infinity or values out of range.
        DataError: an image or a label is unusable. As after every error, committed units stay.
        StoreMismatchError: this machine's crops differ from the store's canary crops.
        IncompleteError: some units were left out, because another builder's inputs differ from those made here.
    """
    if passes < 1:
        raise UsageError(f"views must be at least 1, got {passes}")
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)
    began = time.monotonic()
    if not probe_creation(store.objects):
        report(
            f"this storage may create an object twice: the {world} processes of this job split the units, and nobody"
            " else may build here meanwhile"
        )
    unit_ids = [(index, unit) for index in range(passes) for unit in range(store.spec.units_per_pass)]
    with Builder(store, dataset, teacher, options, progress) as builder:
        committed = {(index, unit) for index in range(passes) for unit in store.committed_units(index)}
        missing = [unit_id for unit_id in unit_ids if unit_id not in committed]
        if rank == 0:
            _prepare(store, builder, report)
            if missing:
                remaining = remaining_work(store, missing, builder.teacher_s, processes=world)
                on_remaining(remaining)
                if not options.force:
                    require_disk_space(remaining, store.url)
            _create_passes(store, passes)
        if state:
            state.wait_for_everyone()  # the others need the calibration
        builder.check_canaries()
        # Split before committed units are removed, so that processes that list at different moments still agree.
        assigned = [unit_id for unit_id in unit_ids[rank::world] if unit_id not in committed]
        work = _run_build(builder, assigned, missing)
    if state:
        state.wait_for_everyone()
    if rank == 0:
        for index in store.begun_passes():  # also passes whose last builder died before it wrote the manifest
            store.finish_pass(index)
    _require_none_left(store, work)
    return BuildResult(
        units_built=len(work.built),
        units_before=len(committed),
        entries_built=sum(len(store.spec.unit_rows(unit)) for _, unit in work.built),
        seconds=time.monotonic() - began,
    )


def _prepare(store: Store, builder: Builder, report: Callable[[str], None]) -> None:
    """Clean up and calibrate. One process does it; the others find the result."""
    store.objects.remove_leftovers()
    if not store.is_calibrated:
        store.adopt_calibration(builder.calibrate(report))


def _create_passes(store: Store, passes: int) -> None:
    """Record the goal and the arrays' metadata before the first unit, so that every committed unit is readable."""
    store.raise_goal(passes)
    for index in range(passes):
        store.create_pass(index)


def _run_build(builder: Builder, assigned: Sequence[UnitId], missing: Sequence[UnitId]) -> Assignment:
    """Build those of `missing` that nobody else builds; only `assigned` if the storage cannot create objects once."""
    if not builder.store.objects.creates_once:
        fixed = FixedAssignment(builder.store, assigned)
        builder.build(fixed)
        return fixed
    with LeasedAssignment(builder.store, missing, heartbeat_s=builder.options.heartbeat_s) as leased:
        builder.build(leased)
    return leased


def _require_none_left(store: Store, work: Assignment) -> None:
    """Raises IncompleteError for units that were left to another builder and are still not committed."""
    if left := sorted(unit_id for unit_id in work.left if not store.is_committed(*unit_id)):
        units = ", ".join(f"{index}/{unit}" for index, unit in left[:8])
        raise IncompleteError(
            f"{len(left)} units (pass/unit {units}) were started by a builder whose crops differ from those made here",
            hint="its images or image libraries differ; let that builder finish these units",
        )
