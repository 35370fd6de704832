"""Build throughput over a bare teacher loop: what decoding, quantising, compressing and writing cost the teacher.

The bare loop has its crops in memory already and throws the outputs away.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from harness import Row, alternate, finish, median_ratio, ratio
from PIL import Image
from torch import Tensor

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.build.entries import cut_entry
from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.images.datasets import SegmentationDataset, open_dataset
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.store import CALIBRATION, Store
from kdcache.cache.teachers.teacher import Teacher, load_teacher
from kdcache.cache.views.policy import ViewPolicy


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
        targets = dict.fromkeys(("logits", "features"), "auto:0.001")  # the default of `kdcache build`
        spec = plan_store(dataset, teacher, policy, seed=0, targets=targets)
        options = BuildOptions(batch_size=batch, force=True)
        calibrated = create_store(f"{folder}/calibrated", spec, dataset.image_ids)
        build_store(calibrated, dataset, teacher, passes=1, options=options)
        entries = [cut_entry(dataset, spec, 0, position) for position in range(images)]
        crops = torch.stack([torch.from_numpy(entry.crop.image) for entry in entries])
        valid_size = torch.tensor([(entry.crop.height, entry.crop.width) for entry in entries])

        def bare() -> None:
            for start in range(0, images, batch):
                part = slice(start, start + batch)
                outputs = teacher(
                    crops[part].to(teacher.device), valid_size[part].to(teacher.device), tuple(targets)
                )
                assert outputs["logits"].shape[0] == batch

        def build() -> None:
            shutil.rmtree(f"{folder}/store", ignore_errors=True)
            store = create_store(f"{folder}/store", spec, dataset.image_ids)
            # Once a store, so not part of the cost of a crop.
            store.objects.put_new(CALIBRATION, calibrated.objects.get(CALIBRATION))
            build_store(store, dataset, teacher, passes=1, options=options)

        seconds = alternate({"bare teacher loop": bare, "build": build}, rounds)
        manifest = calibrated.manifest(0)
        assert manifest is not None
        outputs = teacher(
            crops[:batch].to(teacher.device), valid_size[:batch].to(teacher.device), tuple(targets)
        )
        storing = median(storing_s(calibrated, outputs, Path(folder)) for _ in range(rounds)) / batch
        rows = [
            Row("processor seconds a crop, quantise, compress and write", storing, "s"),
            Row("crops a second, build", images / sorted(seconds["build"])[rounds // 2], "crop/s"),
            *(Row(f"bytes a crop, {k}", v / images, "B") for k, v in manifest.bytes_by_array.items()),
            ratio(
                "build over bare teacher",
                median_ratio(seconds["bare teacher loop"], seconds["build"]),
                ">= 0.95",
            ),
        ]
    setting = f"{network}, {images} crops of {crop[0]}x{crop[1]} from {size[0]}x{size[1]} PNG, batch {batch}"
    setting += "".join(f", {name} {codec.name}" for name, codec in calibrated.calibration.codecs.items())
    return finish("build", rows, seconds, setting, as_json=as_json)


def storing_s(store: Store, outputs: dict[str, Tensor], folder: Path) -> float:
    """Seconds of all cores from the teacher's outputs for a batch to files on the disk."""
    began = time.process_time()
    for name, codec in store.calibration.codecs.items():
        rows = codec.pack(codec.encode(outputs[name])[0].cpu().numpy())
        layout = ArrayLayout.of_packing(name, codec.packing(store.spec.targets[name].shape), rows=len(rows))
        with (folder / "shard").open("wb") as file:
            file.write(layout.encode(rows))
            os.fsync(file.fileno())
    return time.process_time() - began


def write_images(folder: Path, size: tuple[int, int], count: int) -> SegmentationDataset:
    """A `folder` dataset of PNG files at the usual compression level. Decoding them is part of the measurement."""
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
