"""Students: their initial weights, and saved ones that predict as before."""

import hashlib
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from kdcache.cache.errors import NotFoundError, UsageError, WeightsError
from kdcache.cache.images.classes import ClassSet
from kdcache.cache.networks.network import PRESETS, build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.distill.scoring.evaluate import EvalMode
from kdcache.distill.students.start import IMAGENET_WEIGHTS, build_student
from kdcache.distill.students.student import load_student, save_student

CLASSES = ClassSet("three", ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (41, 58, 3), dtype=np.uint8)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch.hub folder, and downloads that fail."""

    def unreachable(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def backbone_file(tmp_path: Path) -> Path:
    path = tmp_path / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


class TestBackboneWeights:
    def test_every_weight_of_a_file_arrives(self, backbone_file: Path) -> None:
        expected = torch.load(backbone_file, weights_only=True)
        network, normalisation = build_student("pspnet_resnet18", 3, str(backbone_file))
        loaded = network.backbone.state_dict()
        assert set(expected) - set(loaded) == {"fc.weight", "fc.bias"}
        assert all(torch.equal(value, expected[key]) for key, value in loaded.items())
        assert normalisation == RGB_IMAGENET

    def test_a_safetensors_file_will_do(self, tmp_path: Path) -> None:
        weights = resnet18().state_dict()
        save_file(weights, tmp_path / "resnet18.safetensors")
        network, _ = build_student("pspnet_resnet18", 3, str(tmp_path / "resnet18.safetensors"))
        assert torch.equal(network.backbone.conv1.weight, weights["conv1.weight"])

    def test_a_file_of_another_depth_is_refused_with_its_keys(self, backbone_file: Path) -> None:
        with pytest.raises(WeightsError, match=r"missing: .*layer1\.2\.conv1\.weight"):
            build_student("pspnet_resnet34", 3, str(backbone_file))

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(NotFoundError, match=r"nowhere\.pth"):
            build_student("pspnet_resnet18", 3, "nowhere.pth")

    def test_none_is_a_random_start_that_the_seed_determines(self) -> None:
        starts = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            starts.append(build_student("pspnet_resnet18", 3, "none")[0].backbone.conv1.weight)
        assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])

    def test_no_network_is_an_error_and_not_a_random_start(self, hub: Path) -> None:
        with pytest.raises(
            NotFoundError, match=r"ImageNet weights of resnet18 .* no route to host"
        ) as caught:
            build_student("pspnet_resnet18", 3)
        assert caught.value.exit_code == 13
        assert "--backbone-weights none" in str(caught.value.hint)

    def test_imagenet_takes_the_file_in_the_hubs_folder(
        self, hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hub.mkdir(parents=True)
        weights = resnet18().state_dict()
        torch.save(weights, hub / "made-up.pth")
        digest = hashlib.sha256((hub / "made-up.pth").read_bytes()).hexdigest()[:8]
        (hub / "made-up.pth").rename(hub / f"resnet18-{digest}.pth")
        monkeypatch.setitem(
            IMAGENET_WEIGHTS, "resnet18", _Weights(f"https://example.org/resnet18-{digest}.pth")
        )
        network, _ = build_student("pspnet_resnet18", 3)
        assert torch.equal(network.backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])

    def test_a_damaged_file_in_the_hubs_folder_is_refused(self, hub: Path) -> None:
        hub.mkdir(parents=True)
        (hub / Path(IMAGENET_WEIGHTS["resnet18"].url).name).write_bytes(b"half a download")
        with pytest.raises(WeightsError, match=r"its sha256 does not start with f37072fd"):
            build_student("pspnet_resnet18", 3)

    @pytest.mark.parametrize("preset", [name for name, traits in PRESETS.items() if traits["stem"] != "7x7"])
    def test_a_deep_stem_cannot_take_them(self, preset: str, hub: Path) -> None:
        with pytest.raises(UsageError, match=f"need a 7x7 stem; preset '{preset}' has the stem"):
            build_student("pspnet_resnet18", 3, "imagenet", preset=preset)


class _Weights:
    def __init__(self, url: str) -> None:
        self.url = url


class TestSavedStudents:
    def test_predict_as_before(self, tmp_path: Path, image: np.ndarray) -> None:
        network = build_network(network_config("pspnet_resnet18", 3)).eval()
        torch.nn.init.normal_(network.classifier.weight)
        with torch.no_grad():
            logits = network(RGB_IMAGENET(torch.from_numpy(image)[None])).logits
            large = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[0]
        path = tmp_path / "student.safetensors"
        save_student(
            path, network.train(), RGB_IMAGENET, dataset="made-up", classes=CLASSES, run={"steps": 7}
        )

        student = load_student(path)
        prediction = student.predict(image)

        assert prediction.shape == image.shape[:2] and prediction.dtype == np.int64
        torch.testing.assert_close(student.logits(image), large, rtol=1e-3, atol=1e-3)
        assert np.array_equal(prediction, student.logits(image).argmax(dim=0).numpy())
        assert len(np.unique(prediction)) > 1
        assert student.class_names == CLASSES.names and student.palette == CLASSES.palette
        assert student.meta["dataset"] == "made-up" and student.meta["run"] == {"steps": 7}
        assert network.training

    def test_are_found_in_their_runs_folder_and_slide(self, tmp_path: Path, image: np.ndarray) -> None:
        network = build_network(network_config("pspnet_resnet18", 3))
        save_student(
            tmp_path / "student.safetensors", network, RGB_IMAGENET, dataset="made-up", classes=CLASSES
        )
        student = load_student(tmp_path).to("cpu")
        mode = EvalMode(mode="slide", crop_height_px=32, crop_width_px=32)
        assert student.predict(image, mode).shape == image.shape[:2]

    def test_refuse_what_is_no_image(self, tmp_path: Path) -> None:
        network = build_network(network_config("pspnet_resnet18", 3))
        path = tmp_path / "student.safetensors"
        save_student(path, network, RGB_IMAGENET, dataset="made-up", classes=CLASSES)
        with pytest.raises(UsageError, match=r"uint8 RGB, got \(3, 8, 8\) float32"):
            load_student(path).predict(np.zeros((3, 8, 8), np.float32))

    def test_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError, match="no run and no checkpoint"):
            load_student(tmp_path / "student.safetensors")
        with pytest.raises(NotFoundError, match=r"has no student\.safetensors$"):
            load_student(tmp_path)

    def test_of_an_unfinished_run_are_in_its_checkpoint(self, tmp_path: Path) -> None:
        begun = tmp_path / "checkpoint" / "step-00000120" / "student.safetensors"
        begun.parent.mkdir(parents=True)
        begun.touch()
        with pytest.raises(NotFoundError, match="the run is not finished") as caught:
            load_student(tmp_path)
        assert str(begun) in (caught.value.hint or "")

    def test_whose_names_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        network = build_network(network_config("pspnet_resnet18", 2))
        path = tmp_path / "student.safetensors"
        save_student(path, network, RGB_IMAGENET, dataset="made-up", classes=CLASSES)
        with pytest.raises(WeightsError, match="names 3 classes, but its network has 2"):
            load_student(path)
