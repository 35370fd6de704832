"""The build: every planned view goes once through the teacher, and its targets land in the store.

Whatever dies, the next build goes on from the last committed unit. Any number of builders share the units of a store by
leases, processes of one job no different from those of others. Where storage cannot create once, the processes of one job
split the units by rank, and no other may build.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from accelerate import PartialState

from kdcache.cache.build.builder import Builder, BuildOptions
from kdcache.cache.build.disk_space import Outlook, look_ahead, require_disk_space
from kdcache.cache.build.leases import Place
from kdcache.cache.build.shares import FixedShare, LeasedShare, Share
from kdcache.cache.codecs.registry import canonical_request
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
    """What one build did, over this process alone."""

    units_built: int
    units_before: int  # committed before this build began, by any process
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
    """The spec of the store that these choices lead to.

    Raises:
        UsageError: an unknown codec, a target that the teacher does not give, or a unit that is too large.
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
    foresee: Callable[[Outlook], None] = lambda outlook: None,
) -> BuildResult:
    """Bring `store` to `passes` passes, from wherever it stands, beside any other builders.

    Args:
        state: this process's place in its job, where it has one.
        report: takes lines about the calibration and about how units are shared.
        foresee: takes what is left to do, before the first unit, where anything is.

    Raises:
        UsageError: the disk does not hold what is left to write (unless forced).
        TeacherError: the teacher looks like chance or like misaligned, or gave NaN, infinity or values out of range.
        DataError: an image or a label cannot be used. What was committed stays, as after every other error.
        StoreMismatchError: this machine's crops differ from the store's canary crops.
        IncompleteError: units were left whose inputs, put by another builder, differ from those made here.
    """
    if passes < 1:
        raise UsageError(f"views must be at least 1, got {passes}")
    rank, world = (state.process_index, state.num_processes) if state else (0, 1)
    began = time.monotonic()
    if not probe_creation(store.objects):
        report(
            f"this storage cannot be relied on to create an object only once: units are split among the {world} processes"
            " of this job, and nobody else may build here meanwhile"
        )
    places = [(index, unit) for index in range(passes) for unit in range(store.spec.units_per_pass)]
    with Builder(store, dataset, teacher, options, progress) as builder:
        committed = {(index, unit) for index in range(passes) for unit in store.committed_units(index)}
        missing = [place for place in places if place not in committed]
        if rank == 0:
            _prepare(store, builder, report)
            if missing:
                outlook = look_ahead(store, missing, builder.teacher_s, processes=world)
                foresee(outlook)
                if not options.force:
                    require_disk_space(outlook, store.url)
            _begin_passes(store, passes)
        if state:
            state.wait_for_everyone()
        builder.check_canaries()
        # Dealt before the committed units are taken out: processes that list at different moments agree.
        dealt = [place for place in places[rank::world] if place not in committed]
        share = _run_build(builder, dealt, missing)
    if state:
        state.wait_for_everyone()
    if rank == 0:
        for index in store.begun_passes():  # also those whose last builder died before its manifest
            store.finish_pass(index)
    _require_none_left(store, share)
    return BuildResult(
        units_built=len(share.built),
        units_before=len(committed),
        entries_built=sum(len(store.spec.unit_rows(unit)) for _, unit in share.built),
        seconds=time.monotonic() - began,
    )


def _prepare(store: Store, builder: Builder, report: Callable[[str], None]) -> None:
    """What stands before anything is planned: done by one process, found by the others."""
    store.objects.remove_leftovers()
    if not store.is_calibrated:
        store.adopt_calibration(builder.calibrate(report))


def _begin_passes(store: Store, passes: int) -> None:
    """The goal and the arrays' metadata, on record before the first unit."""
    store.raise_goal(passes)
    for index in range(passes):
        store.create_pass(index)


def _run_build(builder: Builder, dealt: Sequence[Place], missing: Sequence[Place]) -> Share:
    """Build what of `missing` nobody else holds; where storage cannot create once, what was `dealt` to this process."""
    if not builder.store.objects.creates_once:
        fixed = FixedShare(builder.store, dealt)
        builder.build(fixed)
        return fixed
    with LeasedShare(builder.store, missing, heartbeat_s=builder.options.heartbeat_s) as leased:
        builder.build(leased)
    return leased


def _require_none_left(store: Store, share: Share) -> None:
    """Raises IncompleteError for units that were left to another builder and that nobody has committed since."""
    if left := sorted(place for place in share.left if not store.is_committed(*place)):
        units = ", ".join(f"{index}/{unit}" for index, unit in left[:8])
        raise IncompleteError(
            f"{len(left)} units (pass/unit {units}) were begun by a builder whose crops differ from those made here",
            hint="their images or image libraries differ; let that builder finish them",
        )
