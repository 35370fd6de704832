"""Origins: the images and the teacher that a store was made from, opened again where you say they are.

Nothing is imported only because a store names it: you have to name a factory again.
"""

import shlex
from typing import TYPE_CHECKING

from kdcache.cache.errors import StoreMismatchError, UsageError

if TYPE_CHECKING:
    import torch

    from kdcache.cache.images.datasets import SegmentationDataset
    from kdcache.cache.store.spec import StoreSpec
    from kdcache.cache.teachers.teacher import Teacher


def open_images(spec: "StoreSpec", data_root: str | None) -> "SegmentationDataset":
    """The dataset of a store. Raises StoreMismatchError for other images."""
    from kdcache.cache.images.datasets import open_dataset

    stored = spec.dataset
    images = open_dataset(stored.name, data_root, stored.split)
    if images.fingerprint() != stored.fingerprint:
        raise StoreMismatchError(
            f"the images of {stored.name} {stored.split} found here are not those of the store: "
            f"{len(images)} here, {stored.images} there, other names or file sizes",
            hint="--data-root names the folder that the store was built from, or an equal copy",
        )
    return images


def open_teacher(spec: "StoreSpec", name: str | None, weights: str, device: "torch.device") -> "Teacher":
    """The teacher of a store, by `name` where it is a factory."""
    from kdcache.cache.teachers.teacher import load_teacher

    named = str(spec.teacher["name"])
    if name is None and ":" in named:
        raise UsageError(
            f"the store's teacher is the factory {named}, which kdcache does not import only because the store names it",
            hint=f"--teacher {shlex.quote(named)}, if you trust it",
        )
    return load_teacher(
        name or named,
        weights=weights,
        dataset_name=spec.dataset.name,
        classes=len(spec.dataset.class_names),
        device=device,
        precision=str(spec.teacher.get("precision", "float32")),
    )
