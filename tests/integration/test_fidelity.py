"""`kdcache fidelity`, and the default codec of a build: the errors that stores state are the real ones."""

import json
from pathlib import Path

import pytest
import torch

from kdcache.cache.images.datasets import open_dataset
from kdcache.cache.networks.checkpoints import save_network
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.store.opening import open_store

DATASET = "streets:96x128:12"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A network whose BatchNorms have seen some images and whose classifier prefers some classes."""
    torch.manual_seed(0)
    images = open_dataset(DATASET, None, "train")
    network = build_network(network_config("pspnet_resnet18", 19)).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    torch.nn.init.normal_(network.classifier.weight, std=0.3)
    network(RGB_IMAGENET(torch.stack([torch.from_numpy(images.image(n)) for n in range(4)])))
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(path, network, normalisation=RGB_IMAGENET)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory, weights) -> Path:
    from kdcache.cli.main import run

    path = tmp_path_factory.mktemp("stores") / "store"
    asked = [
        "--dataset",
        DATASET,
        "--teacher",
        "pspnet_resnet18",
        "--weights",
        str(weights),
        "--store",
        str(path),
    ]
    assert run(["build", *asked, "--views", "2", "--force", "--device", "cpu"]) == 0
    return path


def test_the_default_codec_keeps_its_promise_on_all_of_the_store(kdcache, store, weights):
    code, out, _ = kdcache(
        "fidelity", str(store), "--weights", str(weights), "--entries", "24", "--no-rates", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert found["entries"] == 24
    for target in ("logits", "features"):
        assert found["fidelity"][target]["kl"] <= 1.3e-3  # promised 1e-3 on eight of them
        assert found["fidelity"][target]["agreement"] >= 0.95
    assert abs(found["teacher_miou"]["exact"] - found["teacher_miou"]["stored"]) < 0.02
    assert found["gradient_cosine"] is None

    said = open_store(str(store)).calibration.fidelity
    for target in ("logits", "features"):
        assert said[target]["kl"] <= 1e-3
        stored = found["fidelity"][target]["bytes_per_value"]
        assert said[target]["bytes_per_value"] == pytest.approx(stored, rel=0.25)
    (commit,) = open_store(str(store)).commits(0).values()
    assert 0 < commit.built["fidelity"]["logits"]["kl"] <= 2e-3


@pytest.mark.slow
def test_the_report_and_its_pictures(kdcache, store, weights, tmp_path):
    code, out, _ = kdcache(
        *("fidelity", str(store), "--weights", str(weights), "--entries", "2"),
        *("--student", str(weights), "--out", str(tmp_path / "report")),
    )
    assert code == 0
    assert "cosine of the student's gradients" in out and "logits" in out
    report = tmp_path / "report"
    text = (report / "fidelity.md").read_text()
    assert "figures/maps.png" in text
    assert (report / "figures" / "maps.png").read_bytes().startswith(b"\x89PNG")
    for name in ("rates-logits", "rates-features"):
        assert f"figures/{name}.svg" in text
        assert (report / "figures" / f"{name}.svg").read_text().startswith("<svg")
    assert "data:image/png" in (report / "fidelity.html").read_text()
    rates = json.loads((report / "fidelity.json").read_text())["rates"]["logits"]
    assert {point["codec"].split(":")[0] for point in rates} == {
        *("fp16", "uniform", "delta", "pca", "dct", "dct-range")
    }


def test_another_teacher_is_refused(kdcache, store, tmp_path):
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_network(other, build_network(network_config("pspnet_resnet18", 19)), normalisation=RGB_IMAGENET)
    code, _, error = kdcache("fidelity", str(store), "--weights", str(other))
    assert code == 11
    assert "weights_sha256" in error


def test_one_entry_is_too_few(kdcache, store, weights):
    code, _, error = kdcache("fidelity", str(store), "--weights", str(weights), "--entries", "1")
    assert code == 2
    assert "at least 2" in error
