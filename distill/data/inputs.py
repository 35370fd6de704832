"""What a run learns from: the store or the dataset, opened, checked against each other and pinned.

Everything that can be refused is refused here, before the first batch: a target that the store lacks, images or
classes that are not the store's, a split without labels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kdcache.cache.errors import KDCacheError, StoreDamagedError, StoreMismatchError, UsageError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.images.datasets import SegmentationDataset, open_dataset
from kdcache.cache.storage.shard_cache import ShardCache, default_folder
from kdcache.cache.storage.urls import redact
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.store.spec import canonical_json
from kdcache.cache.store.stored_images import StoredImages
from kdcache.cache.teachers.teacher import Teacher, load_teacher
from kdcache.cache.views.policy import ViewPolicy, view_policy
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.ahead import bytes_at_once
from kdcache.distill.data.order import EntryOrder, FreshOrder
from kdcache.distill.data.targets import (
    CachedTargets,
    FreshViews,
    OnlineTargets,
    StoredViews,
    Targets,
    ViewDataset,
)
from kdcache.distill.losses.methods import method_needs
from kdcache.distill.losses.terms import LABELS, LossConfig
from kdcache.distill.units import bytes_text

LABEL_LOOKS = 16


@dataclass(kw_only=True, slots=True)
class Inputs:
    """Open and checked. Nothing of it changes but when passes join."""

    views: ViewDataset
    policy: ViewPolicy
    targets: Targets
    target_channels: Mapping[str, int]
    """Channels of the teacher's outputs at hand, by target."""
    entry_bytes: int
    """Of a crop, its label and its codes, as they travel to the device."""
    evaluation: SegmentationDataset | None
    """The split of the scores."""
    identity: Mapping[str, Any]
    """JSON: what the run is pinned to. Resuming it elsewhere must find the same."""

    @property
    def images(self) -> SegmentationDataset:
        return self.views.images

    @property
    def stored_views(self) -> StoredViews | None:
        """What reads the store; None where views are drawn anew."""
        views = self.views.views
        return views if isinstance(views, StoredViews) else None

    @property
    def decided_epoch(self) -> int:
        """The last epoch that passes joined at."""
        return max((int(each["epoch"]) for each in self.identity["joined"]), default=0)

    def find_passes(self) -> dict[int, str]:
        """Complete passes of the store that are not the run's, with the digests of their manifests."""
        assert self.stored_views is not None
        reader = self.stored_views.reader
        new = [index for index in reader.complete_passes() if str(index) not in self.identity["manifests"]]
        for index in new:
            reader.open_pass(index)
        return {index: reader.manifests[index].digest for index in new}

    def join_passes(self, epoch: int, found: Mapping[int, str]) -> None:
        """Have passes, of `find_passes`, in the order from an epoch on.

        Raises:
            StoreDamagedError: the store has another manifest here than where it was found.
        """
        stored, identity = self.stored_views, self.identity
        assert stored is not None
        for index, digest in found.items():
            stored.reader.open_pass(index)
            if stored.reader.manifests[index].digest != digest:
                raise StoreDamagedError(f"pass {index} of {redact(stored.reader.url)} is being repaired")
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
    """Open what `config` names. `pinned` is the identity of the run that is gone on with.

    Raises:
        StoreMismatchError: the store lacks a target or belongs to other images or classes, or the inputs are not
            the pinned ones.
        StoreDamagedError: a pass that the run is pinned to was repaired since.
        UsageError: the split of the scores has no labels, or the method needs some for training and there are none.
    """
    asked = method_needs(config.method, LossConfig.of(config))
    needs = tuple(need for need in asked if need != LABELS)
    stored = needs if config.source == "cache" else ()
    cache = ShardCache(default_folder(), config.cache_limit_bytes)
    crops = not config.fresh_views
    reader = StoreReader(config.store, stored, crops=crops, cache=cache) if config.store else None
    images = _open_images(config, reader)
    if LABELS in asked:
        _require_labels(config, images, reader)
    teacher = _load_teacher(config, images, device) if config.source == "online" else None
    joined = pinned.get("joined", []) if pinned else []
    passes = _passes(config, reader, pinned)
    views = _view_source(config, images, reader, passes, joined)
    if isinstance(views, StoredViews) and views.reader.cached is not None:
        _require_room(cache, config, bytes_at_once(views.order, config.batch_size, views.reader.unit_bytes()))
    inputs = Inputs(
        views=ViewDataset(images, views),
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
            f"the store is of dataset {stored.name}, --dataset says {config.dataset}",
            hint="leave --dataset out: the store knows it",
        )
    if reader.has_crops:
        return StoredImages(reader)
    images = open_dataset(stored.name, config.data_root or None, stored.split)
    hint = "--data-root names the folder that the store was built from, or an equal copy"
    if images.image_ids != reader.image_ids or images.fingerprint() != stored.fingerprint:
        raise StoreMismatchError(
            f"the images of {stored.name} {stored.split} found here are not those of the store: "
            f"{len(images)} here, {stored.images} there, other names or file sizes",
            hint=hint,
        )
    if images.classes.names != stored.class_names:
        raise StoreMismatchError(
            f"{stored.name} has {len(images.classes.names)} classes here, the store {len(stored.class_names)}, "
            "or they differ in name",
            hint=hint,
        )
    return images


def _require_labels(config: TrainConfig, images: SegmentationDataset, reader: StoreReader | None) -> None:
    """Of the first entries, where a store keeps its crops: it tells no missing label from a void one."""
    if reader is not None and reader.has_crops:
        entries = reader.entries(reader.passes[0], range(min(LABEL_LOOKS, len(images))))
        labelled = any((entry.crop.label != IGNORE).any() for entry in entries if entry.crop)
    else:
        labelled = images.label(0) is not None
    if not labelled:
        raise UsageError(
            f"--method {config.method} needs labels, and {images.name} {images.split} has none",
            hint="a method that needs none, as logit or feature; the README lists what each needs",
        )


def _open_evaluation(config: TrainConfig, images: SegmentationDataset) -> SegmentationDataset | None:
    if not config.eval_split:
        return None
    try:
        dataset = open_dataset(images.name, config.data_root or None, config.eval_split)
    except KDCacheError as error:
        raise type(error)(str(error), hint=f"{error.hint}; or --eval-split '' for no scores") from None
    if dataset.label(0) is None:
        raise UsageError(
            f"{images.name} {config.eval_split} has no labels to score against",
            hint="--eval-split val, or '' for none",
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
    """The passes of this run: those complete when it began, and those that joined it; others are another run's."""
    if reader is None or config.fresh_views:
        return ()
    if pinned is None:
        if config.passes is not None and config.passes > len(reader.passes):
            raise StoreMismatchError(
                f"--passes {config.passes}: {config.store} has {len(reader.passes)} complete passes",
                hint=f"kdcache build --views {config.passes} adds passes to it",
            )
        return reader.passes[: config.passes]
    return tuple(sorted(int(index) for index in pinned.get("manifests", {})))


def _policy(config: TrainConfig, reader: StoreReader | None) -> ViewPolicy:
    if reader is not None:
        return reader.spec.views
    return view_policy(config.dataset, **config.view_overrides())


def _view_source(
    config: TrainConfig,
    images: SegmentationDataset,
    reader: StoreReader | None,
    passes: tuple[int, ...],
    joined: Sequence[Mapping[str, Any]],
) -> StoredViews | FreshViews:
    if reader is None or config.fresh_views:
        return FreshViews(
            _policy(config, reader), FreshOrder(n_images=len(images), seed=config.seed), config.seed
        )
    came = [index for each in joined for index in each["passes"]]
    order = EntryOrder(
        passes=tuple(index for index in passes if index not in came),
        joined=tuple((each["epoch"], tuple(each["passes"])) for each in joined),
        n_images=reader.n_images,
        unit_entries=reader.unit_entries,
        pool_units=config.pool_units,
        seed=config.seed,
    )
    return StoredViews(reader, order, config.check_crops)


def _target_channels(reader: StoreReader | None, teacher: Teacher | None) -> dict[str, int]:
    if teacher is not None:
        return dict(teacher.channels)
    if reader is not None:
        return {name: reader.spec.targets[name].shape[0] for name in reader.targets}
    return {}


def _entry_bytes(policy: ViewPolicy, reader: StoreReader | None) -> int:
    crop_bytes = 4 * policy.crop_height_px * policy.crop_width_px
    if reader is None:
        return crop_bytes
    packings = [reader.codecs[name].packing(reader.spec.targets[name].shape) for name in reader.targets]
    return crop_bytes + sum(packing.row_bytes for packing in packings)


def _require_room(cache: ShardCache, config: TrainConfig, needed: int) -> None:
    """Raises UsageError where the cache cannot hold so many bytes at once."""
    what = f"a shuffle pool of {config.pool_units} units and what is fetched ahead of it take {needed} bytes"
    if needed > cache.usable_bytes:
        raise UsageError(
            f"{what}; --cache-limit {bytes_text(config.cache_limit_bytes)} holds {cache.usable_bytes}",
            hint=f"--cache-limit {cache.limit_for(needed) // 10**6 + 1}MB or more, or fewer --pool-units",
        )
    if needed > (found := cache.disk_bytes()):
        raise UsageError(
            f"{what}; the disk of {cache.folder} has {found} for them",
            hint="free some space, fewer --pool-units, or point KDCACHE_CACHE to a folder of another disk",
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
    canonical: dict[str, Any] = json.loads(canonical_json(identity))
    return canonical


def _require_same(pinned: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name in ("store", "dataset", "teacher"):
        if pinned.get(name) != found[name]:
            raise StoreMismatchError(
                f"the run was begun with another {name}: {pinned.get(name)}, now {found[name]}",
                hint="resume with what the run was begun with, or begin another in a new folder",
            )
    changed = [
        index for index, digest in found["manifests"].items() if pinned["manifests"].get(index) != digest
    ]
    if changed:
        raise StoreDamagedError(
            f"pass {', '.join(changed)} of the store was repaired or is gone since the run was begun",
            hint="begin another run in a new folder",
        )
