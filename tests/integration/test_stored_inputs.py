"""A store with its crops: student and teacher see the same bits, and training works without the dataset."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training import small_config

from kdcache.cache.build.build import build_store, plan_store
from kdcache.cache.build.builder import BuildOptions
from kdcache.cache.build.entries import cut_entry
from kdcache.cache.errors import IncompleteError, StoreMismatchError
from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.store.opening import create_store
from kdcache.cache.store.reader import StoreReader
from kdcache.cache.teachers.teacher import load_teacher
from kdcache.cache.views.policy import view_policy
from kdcache.distill.training.loop import train

IMAGES = 5


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory) -> Path:
    """Street scenes as a dataset of files, which the test can remove."""
    root = tmp_path_factory.mktemp("dataset")
    drawn = open_dataset(f"streets:64x96:{IMAGES}", None, "train")
    for name in ("images", "masks"):
        (root / name).mkdir()
    (root / "classes.txt").write_text("\n".join(drawn.classes.names) + "\n")
    for index in range(IMAGES):
        Image.fromarray(drawn.image(index)).save(root / "images" / f"{index}.png")
        Image.fromarray(drawn.label(index)).save(root / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(
        path, build_network(network_config("pspnet_resnet18", 19)).train(), normalisation=RGB_IMAGENET
    )
    return path


def begin(url: Path, root: Path, weights: Path, inputs: str):
    images = open_dataset("folder", root, "train")
    teacher = load_teacher("pspnet_resnet18", weights=weights, dataset_name="folder", classes=19)
    policy = view_policy("folder", crop_height_px=64, crop_width_px=96, scale_min=0.6)
    spec = plan_store(
        images, teacher, policy, seed=0, targets={"logits": "fp16"}, inputs=inputs, unit_entries=2
    )
    return create_store(str(url), spec, images.image_ids), images, teacher


def build(url: Path, root: Path, weights: Path, inputs: str) -> str:
    store, images, teacher = begin(url, root, weights, inputs)
    build_store(store, images, teacher, passes=1, options=BuildOptions(batch_size=2, force=True))
    return str(url)


@pytest.mark.parametrize("inputs", ["jpeg:80", "webp"])
def test_targets_are_what_the_teacher_says_of_the_stored_crop(tmp_path, dataset_folder, weights, inputs):
    url = build(tmp_path / "store", dataset_folder, weights, inputs)
    _, images, teacher = begin(tmp_path / "store", dataset_folder, weights, inputs)
    reader = StoreReader(url, ["logits"], crops=True)
    for position in range(IMAGES):
        entry = reader.entry(0, position)
        cut = cut_entry(images, reader.spec, 0, position)
        assert np.array_equal(entry.crop.image, cut.crop.image)
        assert np.array_equal(entry.crop.label, cut.crop.label)
        crop = torch.from_numpy(entry.crop.image)[None]
        said = teacher(crop, torch.tensor([[entry.crop.height, entry.crop.width]]), ("logits",))["logits"]
        stored = reader.codecs["logits"].decode(torch.from_numpy(entry.codes["logits"])[None])
        torch.testing.assert_close(stored, said, atol=2e-3, rtol=2e-3)  # batches of 1 and of 2
    assert StoreReader(url, ["logits"]).entry(0, 0).crop is None


def test_training_needs_no_dataset(tmp_path, dataset_folder, weights):
    moved = tmp_path / "dataset"
    shutil.copytree(dataset_folder, moved)
    url = build(tmp_path / "store", moved, weights, "jpeg:95")
    shutil.rmtree(moved)
    config = small_config(tmp_path / "run", url, steps=2, workers=1, data_root=str(moved))
    assert train(config).steps == 2
    student = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert student["dataset"]["name"] == "folder"
    shutil.rmtree(tmp_path / "run")


def test_another_format_is_another_store(tmp_path, dataset_folder, weights):
    begin(tmp_path / "store", dataset_folder, weights, "jpeg")
    with pytest.raises(StoreMismatchError, match='inputs: "jpeg:95", "webp"'):
        begin(tmp_path / "store", dataset_folder, weights, "webp")


def test_units_begun_with_crops_that_this_machine_does_not_make_are_left(
    tmp_path, dataset_folder, weights, monkeypatch
):
    """Another JPEG encoder: its crops decode to other pixels, so only that builder may finish the units that it started."""
    store, images, teacher = begin(tmp_path / "store", dataset_folder, weights, "jpeg:95")
    options = BuildOptions(batch_size=2, force=True)
    build_store(store, images, teacher, passes=1, options=options)
    for name in ("kd/passes/000/units/000001-0.json", "kd/passes/000/manifest-0.json"):
        (tmp_path / "store" / name).unlink()
    shard = tmp_path / "store/passes/000/crops/c/1/0"
    shard.write_bytes((tmp_path / "store/passes/000/crops/c/0/0").read_bytes())
    with pytest.raises(IncompleteError, match="0/1"):
        build_store(store, images, teacher, passes=1, options=options)


def test_a_sheet_of_stored_crops_needs_no_dataset(tmp_path, dataset_folder, weights, kdcache):
    url = build(tmp_path / "store", dataset_folder, weights, "webp")
    code, out, error = kdcache(
        "view", url, "--data-root", str(tmp_path / "nowhere"), "--out", str(tmp_path / "sheet.png")
    )
    assert (code, error) == (0, "")
    assert Path(out.strip()).read_bytes().startswith(b"\x89PNG")
