"""Checkpoint layouts, against numbers that the original code bases computed.

A fixture under tests/fixtures/checkpoints lists an original network's parameters and some of its outputs. Its
weights and its input are not stored: they are a function of each name and shape (`weights_of`), which was loaded
into the original code, in evaluation mode, on a CPU, in float32. So a fixture proves the whole way from keys
to logits.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from namedvalues import uniform
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdcache.cache.errors import NotFoundError, WeightsError
from kdcache.cache.networks.checkpoints import (
    LISTED_KEYS,
    file_sha256,
    load_backbone,
    load_checkpoint,
    save_network,
)
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.networks.normalisation import BGR_CAFFE, RGB_IMAGENET
from kdcache.cache.networks.resnet import DilatedResNet

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def weights_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """A parameter's value; norms get negative scales and shifted statistics too."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    values = uniform(name, shape)
    if name.endswith("running_var"):
        return 1.0 + 0.5 * values
    if len(shape) == 4:
        return values * float(6.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
    return 0.2 + values if name.endswith("weight") else 0.5 * values


@dataclass(frozen=True)
class Golden:
    shape: tuple[int, ...]
    mean: float
    std: float
    values: list[float]


@dataclass(frozen=True)
class Original:
    state_dict: dict[str, Tensor]
    input: Tensor
    outputs: dict[str, Golden]


def read_fixture(name: str) -> Original:
    state_dict: dict[str, Tensor] = {}
    outputs: dict[str, Golden] = {}
    for line in (FIXTURES / f"{name}.txt").read_text().splitlines():
        kind, *words = line.split()
        if kind == "output":
            shape, moments, values = (part.split() for part in " ".join(words[1:]).split(":"))
            mean, std = map(float, moments)
            outputs[words[0]] = Golden(tuple(map(int, shape)), mean, std, [float(value) for value in values])
        elif kind != "#":
            shape_ = tuple(map(int, words[1:]))
            leaves = {"norm": NORM, "abn": NORM[:4], "conv": ("weight",), "conv+bias": ("weight", "bias")}[
                kind
            ]
            for leaf in leaves:
                key = f"{words[0]}.{leaf}"
                state_dict[key] = weights_of(key, shape_ if leaf == "weight" else shape_[:1])
    return Original(state_dict, uniform("input 97x129", (1, 3, 97, 129)) * 2, outputs)


def save(path: Path, document: Any) -> Path:
    torch.save(document, path)
    return path


LAYOUTS = {
    "mmseg_pspnet_resnet18": ("mmseg", "pspnet_resnet18", "32-32-64", RGB_IMAGENET),
    "cirkd_pspnet_resnet18": ("cirkd", "pspnet_resnet18", "64-64-128", BGR_CAFFE),
    "cirkd_deeplabv3_resnet18": ("cirkd", "deeplabv3_resnet18", "64-64-128", BGR_CAFFE),
    "cirkd22_deeplabv3_resnet18": ("cirkd", "deeplabv3_resnet18", "64-64-128", BGR_CAFFE),
    "semseg_pspnet_resnet50": ("semseg", "pspnet_resnet50", "64-64-128", RGB_IMAGENET),
    "skd_pspnet_resnet18": ("skd", "pspnet_resnet18", "64-64-128", BGR_CAFFE),
    "torchvision_deeplabv3_resnet50": ("torchvision", "deeplabv3_resnet50", "7x7", RGB_IMAGENET),
    "torchvision_fcn_resnet50": ("torchvision", "fcn_resnet50", "7x7", RGB_IMAGENET),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_outputs_are_those_of_the_original_code(name: str, tmp_path: Path) -> None:
    original = read_fixture(name)
    document: Any = original.state_dict
    if name.startswith("semseg"):
        document = {
            "epoch": 200,
            "state_dict": {f"module.{key}": value for key, value in document.items()},
            "optimizer": {},
        }
    path = save(tmp_path / "weights.pth", document)
    checkpoint = load_checkpoint(path)
    layout, network_name, stem, normalisation = LAYOUTS[name]
    assert (checkpoint.layout, checkpoint.config.name) == (layout, network_name)
    assert (checkpoint.config.stem, checkpoint.normalisation) == (stem, normalisation)
    assert checkpoint.sha256 == file_sha256(path)

    with torch.no_grad():
        output = checkpoint.network()(original.input)
    assert (output.aux is None) == ("aux" not in original.outputs)
    for target, golden in original.outputs.items():
        found = getattr(output, target).double()
        assert tuple(found.shape) == golden.shape
        assert found.mean().item() == pytest.approx(golden.mean, abs=1e-4)
        assert found.std().item() == pytest.approx(golden.std, abs=1e-4)
        flat = found.flatten()
        places = [(2 * n + 1) * flat.numel() // 24 for n in range(12)]
        assert flat[places].tolist() == pytest.approx(golden.values, abs=1e-4)


@pytest.fixture(scope="module")
def mmseg() -> dict[str, Tensor]:
    return read_fixture("mmseg_pspnet_resnet18").state_dict


def test_class_names_and_align_corners_come_from_mmsegs_meta(
    mmseg: dict[str, Tensor], tmp_path: Path
) -> None:
    meta = {"CLASSES": ("road", "sidewalk"), "config": "dict(\n    align_corners=True,"}
    checkpoint = load_checkpoint(save(tmp_path / "a.pth", {"meta": meta, "state_dict": mmseg}))
    assert checkpoint.meta == {"class_names": ["road", "sidewalk"]}
    assert checkpoint.config.align_corners
    assert not load_checkpoint(save(tmp_path / "b.pth", mmseg)).config.align_corners


def test_a_foreign_file_may_be_safetensors(mmseg: dict[str, Tensor], tmp_path: Path) -> None:
    save_file(mmseg, tmp_path / "a.safetensors")
    assert load_checkpoint(tmp_path / "a.safetensors").layout == "mmseg"


def test_missing_unexpected_and_wrongly_shaped_keys_are_listed(
    mmseg: dict[str, Tensor], tmp_path: Path
) -> None:
    missing = {key: value for key, value in mmseg.items() if not key.startswith("backbone.layer3.1.")}
    with pytest.raises(WeightsError, match="blocks a stage"):
        load_checkpoint(save(tmp_path / "a.pth", missing))
    missing = {key: value for key, value in mmseg.items() if ".bn1." not in key}
    with pytest.raises(WeightsError, match=r"missing: .*bn1\.weight.* and \d+ more") as caught:
        load_checkpoint(save(tmp_path / "b.pth", missing))
    assert str(caught.value).count("bn1") == LISTED_KEYS
    extra = mmseg | {"decode_head.attention.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"unexpected keys: decode_head\.attention\.weight"):
        load_checkpoint(save(tmp_path / "c.pth", extra))
    nested = mmseg | {"backbone.layer1.0.conv9.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"1 unexpected: backbone\.layer1\.0\.conv9\.weight"):
        load_checkpoint(save(tmp_path / "d.pth", nested))
    wrong = mmseg | {"auxiliary_head.conv_seg.weight": torch.zeros(150, 64, 1, 1)}
    with pytest.raises(
        WeightsError, match=r"aux\.classifier\.weight \(150, 64, 1, 1\), not \(19, 64, 1, 1\)"
    ):
        load_checkpoint(save(tmp_path / "e.pth", wrong))
    with pytest.raises(WeightsError, match=r"classifier\.weight is missing"):
        headless = {key: value for key, value in mmseg.items() if not key.startswith("decode_head.conv_seg")}
        load_checkpoint(save(tmp_path / "f.pth", headless))


def test_unknown_stem_and_layout(mmseg: dict[str, Tensor], tmp_path: Path) -> None:
    stem = mmseg | {"backbone.stem.0.weight": torch.zeros(48, 3, 3, 3)}
    with pytest.raises(WeightsError, match="stem widths"):
        load_checkpoint(save(tmp_path / "a.pth", stem))
    with pytest.raises(WeightsError, match="mmseg, cirkd, semseg, skd, torchvision"):
        load_checkpoint(save(tmp_path / "b.pth", {"encoder.weight": torch.zeros(2)}))
    with pytest.raises(WeightsError) as caught:
        load_checkpoint(
            save(tmp_path / "c.pth", {"fc.weight": torch.zeros(2), "conv1.weight": torch.zeros(2)})
        )
    assert "ImageNet classifier" in str(caught.value.hint)


def test_skd_without_inplace_abn_is_refused(tmp_path: Path) -> None:
    state = read_fixture("skd_pspnet_resnet18").state_dict
    state["bn1.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    with pytest.raises(WeightsError, match="normalisation"):
        load_checkpoint(save(tmp_path / "a.pth", state))


class Unpickled:
    """What a hostile file would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("(_ for _ in ()).throw(AssertionError('unpickled'))",)


def test_nothing_is_unpickled(mmseg: dict[str, Tensor], tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"state_dict": mmseg, "meta": {"hook": Unpickled()}})
    with pytest.raises(WeightsError, match="Python objects") as caught:
        load_checkpoint(path)
    assert "weights_only=False" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files(name: str, tmp_path: Path) -> None:
    network = build_network(network_config("pspnet_resnet18", 3))
    path = tmp_path / name
    if name.endswith(".pth"):
        save(path, network.state_dict())
    else:
        save_network(path, network, normalisation=RGB_IMAGENET)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            load_checkpoint(path)


@pytest.mark.parametrize("document", [[1, 2], {"state_dict": {"a": 1}}, {}, torch.zeros(2)])
def test_a_file_without_a_state_dict(document: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no state dict"):
        load_checkpoint(save(tmp_path / "a.pth", document))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.pth"):
        load_checkpoint(tmp_path / "nowhere.pth")


def test_own_checkpoint_round_trip(tmp_path: Path) -> None:
    network = build_network(network_config("pspnet_resnet18", 3, "skd", stem="7x7")).eval()
    network = network.to(memory_format=torch.channels_last)
    path = tmp_path / "run" / "student.safetensors"
    digest = save_network(path, network, normalisation=BGR_CAFFE, meta={"dataset": "streets"})
    assert [file.name for file in path.parent.iterdir()] == ["student.safetensors"]
    checkpoint = load_checkpoint(path)
    assert (checkpoint.layout, checkpoint.config) == ("kdcache", network.config)
    assert (checkpoint.normalisation, checkpoint.meta) == (BGR_CAFFE, {"dataset": "streets"})
    assert checkpoint.sha256 == digest == file_sha256(path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.network()(image).logits, network(image).logits)
    for key, value in network.state_dict().items():
        assert torch.equal(checkpoint.state_dict[key], value)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "student.safetensors"
    path.write_bytes(b"old")

    def fail(_source: Path, _target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_network(path, build_network(network_config("pspnet_resnet18", 3)), normalisation=RGB_IMAGENET)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("student.safetensors", b"old")
    ]


@pytest.mark.parametrize(
    "damage",
    [
        {"format": 2},
        {"network": {"architecture": "pspnet"}},
        {"normalisation": {}},
        {"network": []},
        {"meta": 3},
    ],
)
def test_own_checkpoint_with_a_damaged_configuration(damage: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    network = build_network(network_config("pspnet_resnet18", 3))
    save_network(path, network, normalisation=RGB_IMAGENET)
    document = {
        "format": 1,
        "network": network.config.to_dict(),
        "normalisation": RGB_IMAGENET.to_dict(),
        "meta": {},
    }
    save_file(load_file(path), path, metadata={"kdcache": json.dumps(document | damage)})
    with pytest.raises(WeightsError, match=r"a\.safetensors"):
        load_checkpoint(path)


def test_load_backbone_leaves_out_the_classifier(tmp_path: Path) -> None:
    source = DilatedResNet("resnet18")
    state = {**source.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = save(tmp_path / "resnet18.pth", state)
    target = DilatedResNet("resnet18")
    load_backbone(target, path)
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key])
    with pytest.raises(WeightsError, match=r"conv2\.weight"):
        load_backbone(DilatedResNet("resnet18", stem="32-32-64"), path)
    with pytest.raises(NotFoundError):
        load_backbone(target, tmp_path / "nowhere.pth")
