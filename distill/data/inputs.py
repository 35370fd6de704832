"""What a run learns from: opens the store and the dataset, checks them against each other, and pins them.

All checks are here, before the first batch: a missing target, images or classes that differ from the store's, a split
without labels.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdcache.cache.errors import KDCacheError, StoreDamagedError, StoreMismatchError, UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.images.datasets import SegmentationDataset, open_dataset
from kdcache.cache.images.decoded import DecodedImages, keep_decoded
from kdcache.cache.storage.host_cache import default_folder
from kdcache.cache.storage.shard_cache import ShardCache
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.stored_images import StoredImages
from kdcache.cache.teachers.teacher import Teacher, load_teacher
from kdcache.cache.views.policy import ViewPolicy, view_policy
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.order import EntryOrder, FreshOrder
from kdcache.distill.data.prefetch import working_set_bytes
from kdcache.distill.data.targets import (
    CachedTargets,
    FreshViews,
    OnlineTargets,
    StoredViews,
    Targets,
    ViewDataset,
    ViewSource,
)
from kdcache.distill.losses.methods import METHODS, method_needs
from kdcache.distill.losses.processes import first_process_first, of_first_process
from kdcache.distill.losses.terms import LABELS, LossConfig
from kdcache.distill.units import bytes_text, size_text

LABEL_CHECK_ENTRIES = 16  # enough that a labelled data set shows at least one labelled pixel


@dataclass(kw_only=True, slots=True)
class Inputs:
    """The opened inputs of a run. They change only when passes join."""

    views: ViewDataset
    policy: ViewPolicy
    targets: Targets
    target_channels: Mapping[str, int]
    """Channels of the available outputs of the teacher, by target."""
    entry_bytes: int
    """Bytes of a crop, its label and its codes on their way to the device."""
    evaluation: SegmentationDataset | None
    """The split to score on; None for no scores."""
    identity: Mapping[str, Any]
    """What the run is pinned to, as JSON values (inputs.json). A resumed run must find the same."""

    @property
    def images(self) -> SegmentationDataset:
        return self.views.images

    @property
    def stored_views(self) -> StoredViews | None:
        """The views of the store; None with fresh views."""
        views = self.views.views
        return views if isinstance(views, StoredViews) else None

    def pin_images(self) -> AbstractContextManager[None]:
        """No process evicts the decoded images of this run from the host's cache until the context ends."""
        images = self.images
        return images.pinned() if isinstance(images, DecodedImages) else nullcontext()

    @property
    def decided_epoch(self) -> int:
        """The last epoch at which passes joined, 0 if none did."""
        return max((int(each["epoch"]) for each in self.identity["joined"]), default=0)

    def find_passes(self) -> dict[int, str]:
        """The complete passes of the store that the run does not use yet, with the digests of their manifests."""
        assert self.stored_views is not None
        reader = self.stored_views.reader
        new = [index for index in reader.complete_passes() if str(index) not in self.identity["manifests"]]
        for index in new:
            reader.open_pass(index)
        return {index: reader.manifests[index].digest for index in new}

    def join_passes(self, epoch: int, found: Mapping[int, str]) -> None:
        """Add the passes that `find_passes` found to the order, from an epoch on.

        Raises:
            StoreDamagedError: this process sees another manifest of a pass than the process that found it.
        """
        stored, identity = self.stored_views, self.identity
        assert stored is not None
        for index, digest in found.items():
            stored.reader.open_pass(index)
            if stored.reader.manifests[index].digest != digest:
                raise StoreDamagedError(
                    f"pass {index} of {redact(stored.reader.url)} is being repaired",
                    hint="wait until the repair is done, then --resume",
                )
        joined = (*stored.order.joined, (epoch, tuple(found)))
        self.views.views = replace(stored, order=replace(stored.order, joined=joined))
        self.identity = {
            **identity,
            "manifests": {**identity["manifests"], **{str(index): digest for index, digest in found.items()}},
            "joined": [*identity["joined"], {"epoch": epoch, "passes": list(found)}],
        }


def open_inputs(
    config: TrainConfig, *, device: torch.device, pinned: Mapping[str, Any] | None = None
) -> Inputs:
    """Open the inputs that `config` names.

    Args:
        pinned: the `identity` of the run that is resumed; None for a new run.

    Raises:
        StoreMismatchError: the store lacks a target or was built from other images or classes, or the inputs differ
            from the pinned ones.
        StoreDamagedError: a pass that the run is pinned to was repaired since.
        UsageError: the evaluation split has no labels, or the method needs labels and the training split has none.
    """
    asked = method_needs(config.method, LossConfig.of(config))
    needs = tuple(need for need in asked if need != LABELS)
    stored = needs if config.source == "cache" else ()
    cache = ShardCache(default_folder(), config.cache_limit_bytes)
    crops = not config.fresh_views  # the store's own crops, if it has them
    # A builder may complete a pass while the processes open the store. Ranks that count different passes would read different
    # orders, in silence: so the first one decides, and the others, which open later, see at least its passes.
    with first_process_first():
        reader = StoreReader(config.store, stored, crops=crops, cache=cache) if config.store else None
    images = _open_images(config, reader)
    if LABELS in asked:
        _require_labels(config, images, reader)
    teacher = _load_teacher(config, images, device) if config.source == "online" else None
    joined = pinned.get("joined", []) if pinned else []
    passes = of_first_process(_passes(config, reader, pinned))
    check_crops = crop_check_of(config.check_crops, device)
    views = _view_source(config, images, reader, passes, joined, check_crops)
    if isinstance(views, StoredViews):
        require_cache_fits(cache, views, config.batch_size)
    images = keep_decoded(
        images,
        config.image_cache,
        limit_bytes=config.cache_limit_bytes,
        reserved_bytes=shard_cache_bytes(views, config.batch_size),
    )
    inputs = Inputs(
        views=ViewDataset(images, views, on_device=device.type == "cuda"),
        policy=_policy(config, reader),
        targets=OnlineTargets(teacher, needs) if teacher else CachedTargets(reader.codecs if reader else {}),
        target_channels=_target_channels(reader, teacher),
        entry_bytes=_entry_bytes(_policy(config, reader), reader),
        evaluation=_open_evaluation(config, images),
        identity=_identity(images, reader, passes, joined, teacher),
    )
    if pinned is not None:
        _require_same(pinned, inputs.identity)
    return inputs


def _open_images(config: TrainConfig, reader: StoreReader | None) -> SegmentationDataset:
    if reader is None:
        return open_dataset(config.dataset, config.data_root or None, config.split)
    stored = reader.spec.dataset
    if config.dataset and config.dataset != stored.name:
        raise StoreMismatchError(
            f"the store was built from dataset {stored.name}, but --dataset is {config.dataset}",
            hint="leave out --dataset: the store knows its dataset",
        )
    return open_images_of(reader, config.data_root)


def open_images_of(reader: StoreReader, data_root: str = "") -> SegmentationDataset:
    """The images that a store was built from: its own crops if it contains them, otherwise the dataset in `data_root`.

    Raises:
        StoreMismatchError: the dataset here has other images or classes than the store.
        NotFoundError: the dataset is missing.
    """
    if reader.has_crops:
        return StoredImages(reader)
    stored = reader.spec.dataset
    images = open_dataset(stored.name, data_root or None, stored.split)
    hint = "--data-root FOLDER with the images that the store was built from, or an identical copy"
    if images.image_ids != reader.image_ids or images.fingerprint() != stored.fingerprint:
        raise StoreMismatchError(
            f"the images of {stored.name} {stored.split} here differ from those of the store: "
            f"{len(images)} here, {stored.images} in the store, or other names or file sizes",
            hint=hint,
        )
    if images.classes.names != stored.class_names:
        raise StoreMismatchError(
            f"the classes of {stored.name} differ from those of the store: {len(images.classes.names)} here, "
            f"{len(stored.class_names)} in the store, or other names",
            hint=hint,
        )
    return images


def _require_labels(config: TrainConfig, images: SegmentationDataset, reader: StoreReader | None) -> None:
    """Raises UsageError if the training images have no labels."""
    if reader is not None and reader.has_crops:
        # Stored crops without a label file have void labels, so look at the pixels of some entries.
        entries = reader.entries(reader.passes[0], range(min(LABEL_CHECK_ENTRIES, len(images))))
        labelled = any((entry.crop.label != IGNORE).any() for entry in entries if entry.crop)
    else:
        labelled = images.label(0) is not None
    if not labelled:
        known = {name: method_needs(name, LossConfig()) for name in METHODS}
        others = [name for name, needed in known.items() if needed and LABELS not in needed]
        raise UsageError(
            f"--method {config.method} needs labels, and {images.name} {images.split} has none",
            hint=f"methods that need no labels: {', '.join(others)}",
        )


def _open_evaluation(config: TrainConfig, images: SegmentationDataset) -> SegmentationDataset | None:
    if not config.eval_split:
        return None
    try:
        dataset = open_dataset(images.name, config.data_root or None, config.eval_split)
    except KDCacheError as error:
        # The user may have only the training split, and is entitled to train without scores.
        raise type(error)(str(error), hint=f"{error.hint}; or --eval-split '' for no scores") from None
    if dataset.label(0) is None:
        raise UsageError(
            f"{images.name} {config.eval_split} has no labels to score against",
            hint="--eval-split val, or --eval-split '' for no scores",
        )
    return dataset


def _load_teacher(config: TrainConfig, images: SegmentationDataset, device: torch.device) -> Teacher:
    return load_teacher(
        config.teacher,
        weights=config.teacher_weights or "auto",
        dataset_name=images.name,
        classes=len(images.classes.names),
        device=device,
        precision=config.teacher_precision,
    )


def _passes(
    config: TrainConfig, reader: StoreReader | None, pinned: Mapping[str, Any] | None
) -> tuple[int, ...]:
    """The passes of this run: those that were complete when it started, and those that joined since."""
    if reader is None or config.fresh_views:
        return ()
    if pinned is None:
        if config.passes is not None and config.passes > len(reader.passes):
            raise StoreMismatchError(
                f"--passes {config.passes}: {config.store} has only {len(reader.passes)} complete passes",
                hint=f"use --passes {len(reader.passes)}, or run the store's `kdcache build` again with --views {config.passes}",
            )
        return reader.passes[: config.passes]
    return tuple(sorted(int(index) for index in pinned.get("manifests", {})))


def _policy(config: TrainConfig, reader: StoreReader | None) -> ViewPolicy:
    if reader is not None:
        return reader.spec.views
    overrides = config.view_overrides()
    return view_policy(config.dataset, overrides.pop("recipe", None), **overrides)


def crop_check_of(asked: str, device: torch.device) -> str:
    """A key of CROP_CHECKS. Checking takes a worker 15 ms a crop, which a GPU would have to wait for."""
    automatic = "sample" if device.type == "cuda" else "always"
    return automatic if asked == "auto" else asked


def _view_source(
    config: TrainConfig,
    images: SegmentationDataset,
    reader: StoreReader | None,
    passes: tuple[int, ...],
    joined: Sequence[Mapping[str, Any]],
    check_crops: str,
) -> StoredViews | FreshViews:
    if reader is None or config.fresh_views:
        return FreshViews(
            _policy(config, reader), FreshOrder(n_images=len(images), seed=config.seed), config.seed
        )
    later = [index for each in joined for index in each["passes"]]
    order = EntryOrder(
        passes=tuple(index for index in passes if index not in later),
        joined=tuple((each["epoch"], tuple(each["passes"])) for each in joined),
        n_images=reader.n_images,
        unit_entries=reader.unit_entries,
        pool_units=config.pool_units,
        seed=config.seed,
    )
    return StoredViews(reader, order, check_crops)


def _target_channels(reader: StoreReader | None, teacher: Teacher | None) -> dict[str, int]:
    if teacher is not None:
        return dict(teacher.channels)
    if reader is not None:
        return {name: reader.spec.targets[name].shape[0] for name in reader.targets}
    return {}


def _entry_bytes(policy: ViewPolicy, reader: StoreReader | None) -> int:
    crop_bytes = 4 * policy.crop_height_px * policy.crop_width_px  # three of the image, one of the label
    if reader is None:
        return crop_bytes
    packings = [reader.codecs[name].packing(reader.spec.targets[name].shape) for name in reader.targets]
    return crop_bytes + sum(packing.row_bytes for packing in packings)


def shard_cache_bytes(views: ViewSource, batch_size: int) -> int:
    """Bytes that the shards of a run need in the host's cache at once; 0 if it reads none through the cache."""
    if not isinstance(views, StoredViews) or views.reader.cached is None:
        return 0
    return working_set_bytes(views.order, batch_size, views.reader.unit_bytes())


def require_cache_fits(cache: ShardCache, views: StoredViews, batch_size: int) -> None:
    """Raises UsageError if the store is read through a cache that is too small: every shard would be fetched again and again."""
    needed = shard_cache_bytes(views, batch_size)
    what = f"a shuffle pool of {views.order.pool_units} units and what is fetched ahead of it need {size_text(needed)}"
    if needed > cache.usable_bytes:
        raise UsageError(
            f"{what} of cache; --cache-limit {bytes_text(cache.limit_bytes)} leaves {size_text(cache.usable_bytes)}",
            hint=f"--cache-limit {cache.limit_for(needed) // 10**6 + 1}MB or more, or fewer --pool-units",
        )
    if needed > (found := cache.disk_bytes()):
        raise UsageError(
            f"{what} of cache; the disk of {cache.folder} has {size_text(found)} free for it",
            hint="free some disk space, use fewer --pool-units, or set KDCACHE_CACHE to a folder on another disk",
        )


def _identity(
    images: SegmentationDataset,
    reader: StoreReader | None,
    passes: tuple[int, ...],
    joined: Sequence[Mapping[str, Any]],
    teacher: Teacher | None,
) -> dict[str, Any]:
    manifests = {index: reader.manifests.get(index) if reader else None for index in passes}
    identity = {
        "dataset": {"name": images.name, "split": images.split, "fingerprint": images.fingerprint()},
        "store": reader.spec.key if reader else None,
        "manifests": {str(index): manifest and manifest.digest for index, manifest in manifests.items()},
        "joined": list(joined),
        "teacher": teacher.identity() if teacher else reader.spec.teacher if reader else None,
    }
    # Through JSON, so that it compares equal with what a resumed run reads from its file.
    canonical: dict[str, Any] = json.loads(canonical_json(identity))
    return canonical


def _require_same(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name in ("store", "dataset", "teacher"):
        if pinned.get(name) != found[name]:
            raise StoreMismatchError(
                f"the run started with another {name}: {pinned.get(name)}; now it is {found[name]}",
                hint="resume with the inputs that the run started with, or start a new run with --out NEW_FOLDER",
            )
    changed = [
        index for index, digest in found["manifests"].items() if pinned["manifests"].get(index) != digest
    ]
    if changed:
        raise StoreDamagedError(
            f"pass {', '.join(changed)} of the store was repaired or removed since the run started",
            hint="start a new run with --out NEW_FOLDER",
        )
