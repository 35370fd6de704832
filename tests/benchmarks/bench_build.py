"""Build throughput over a bare teacher loop: what decoding, quantising, compressing and writing cost the teacher.

The bare loop has its crops in memory already and throws the outputs away.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from harness import Row, alternate, finish, median_ratio, ratio
from PIL import Image

from kdcache.cache.build import BuildOptions, build_store, cut_entry, plan_store
from kdcache.cache.checkpoints import save_network
from kdcache.cache.datasets import SegmentationDataset, open_dataset
from kdcache.cache.networks import RGB_IMAGENET, build_network, network_config
from kdcache.cache.store import CALIBRATION, create_store
from kdcache.cache.teacher import Teacher, load_teacher
from kdcache.cache.views import ViewPolicy


def run(*, quick: bool, as_json: bool) -> int:
    network, size, crop, batch, images, rounds = (
        ("pspnet_resnet18", (256, 512), (128, 256), 4, 16, 3)
        if quick
        else ("pspnet_resnet101", (1024, 2048), (512, 1024), 2, 16, 3)
    )
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_images(Path(folder) / "images", size, images)
        teacher = random_teacher(network, len(dataset.classes.names), Path(folder))
        policy = ViewPolicy(
            crop_height_px=crop[0], crop_width_px=crop[1], photometric=True, cat_max_ratio=0.75
        )
        targets = {"logits": "uniform", "features": "uniform"}
        spec = plan_store(dataset, teacher, policy, seed=0, targets=targets)
        options = BuildOptions(batch_size=batch, force=True)
        calibrated = create_store(f"{folder}/calibrated", spec, dataset.image_ids)
        build_store(calibrated, dataset, teacher, passes=1, options=options)
        entries = [cut_entry(dataset, spec, 0, position) for position in range(images)]
        crops = torch.stack([torch.from_numpy(entry.crop.image) for entry in entries])
        valid = torch.tensor([(entry.crop.height, entry.crop.width) for entry in entries])

        def bare() -> None:
            for start in range(0, images, batch):
                part = slice(start, start + batch)
                outputs = teacher(
                    crops[part].to(teacher.device), valid[part].to(teacher.device), tuple(targets)
                )
                assert outputs["logits"].shape[0] == batch

        def build() -> None:
            shutil.rmtree(f"{folder}/store", ignore_errors=True)
            store = create_store(f"{folder}/store", spec, dataset.image_ids)
            store.objects.put_new(
                CALIBRATION, calibrated.objects.get(CALIBRATION)
            )  # once a store, not a crop's cost
            build_store(store, dataset, teacher, passes=1, options=options)

        seconds = alternate({"bare teacher loop": bare, "build": build}, rounds)
        manifest = calibrated.manifest(0)
        assert manifest is not None
        rows = [
            Row("crops a second, build", images / sorted(seconds["build"])[rounds // 2], "crop/s"),
            *(Row(f"bytes a crop, {k}", v / images, "B") for k, v in manifest.bytes_by_array.items()),
            ratio(
                "build over bare teacher",
                median_ratio(seconds["bare teacher loop"], seconds["build"]),
                ">= 0.95",
            ),
        ]
    setting = f"{network}, {images} crops of {crop[0]}x{crop[1]} from {size[0]}x{size[1]} PNG, batch {batch}, uniform"
    return finish("build", rows, seconds, setting, as_json=as_json)


def write_images(folder: Path, size: tuple[int, int], count: int) -> SegmentationDataset:
    """A `folder` dataset of PNG files at the usual level, at which they decode quickest: that is part of what is measured."""
    drawn = open_dataset(f"streets:{size[0]}x{size[1]}:{count}", None, "train")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(drawn.classes.names) + "\n")
    for index, image_id in enumerate(drawn.image_ids):
        stem = image_id.replace("/", "_")
        Image.fromarray(drawn.image(index)).save(folder / "images" / f"{stem}.png")
        Image.fromarray(drawn.label(index)).save(folder / "masks" / f"{stem}.png")
    return open_dataset("folder", folder, "train")


def random_teacher(network: str, classes: int, folder: Path) -> Teacher:
    """A teacher with random weights: the cost of a network does not depend on them."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    built = build_network(network_config(network, classes))
    save_network(folder / "teacher.safetensors", built, normalisation=RGB_IMAGENET)
    return load_teacher(
        network, weights=folder / "teacher.safetensors", dataset_name="", classes=classes, device=device
    )
