"""No part of a step or of a batch of a build waits for the device, but for what ALLOWED names. Run on a fake device."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fakecuda import CUDA, fake_cuda, record_waits
from torch import Tensor

from kdcache.cache.codecs.registry import CODECS, fit_codec
from kdcache.cache.networks.network import NETWORKS, NetworkOutput, build_network, network_config
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.cache.views.device_replay import Boxes, replay_boxes
from kdcache.cache.views.policy import ViewPolicy
from kdcache.distill.losses.adversarial import Holistic
from kdcache.distill.losses.methods import METHODS, build_method
from kdcache.distill.losses.region import share_totals
from kdcache.distill.losses.terms import LossConfig

CROP, MAP, N, CLASSES = (64, 128), (8, 16), 2, 19

# (file, operation): why it is worth a wait.
ALLOWED: dict[tuple[str, str], str] = {}


@pytest.fixture
def fake() -> Iterator[None]:
    with fake_cuda():
        yield


def require_no_waits(waits: list[tuple[str, str]]) -> None:
    assert [wait for wait in dict.fromkeys(waits) if wait not in ALLOWED] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method(
    root: Path, fake: None, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    # The penalty is a backward pass, which a device that is not there cannot run; it reads nothing back.
    monkeypatch.setattr(
        Holistic, "_gradient_norms", lambda self, student, *_: student.new_empty(len(student))
    )
    student = network_config("pspnet_resnet18", CLASSES, "kdcache")
    channels = {"logits": CLASSES, "features": 512, "aux": CLASSES, "backbone": 2048}
    with CUDA:
        method = build_method(name, LossConfig(), student, channels)
        own = NetworkOutput(
            *(torch.empty(N, student.channels[key], *MAP, dtype=dtype) for key in NetworkOutput._fields)
        )
        targets = {key: torch.empty(N, width, *MAP) for key, width in channels.items()}
        labels = torch.empty(N, *CROP, dtype=torch.uint8)
        valid_size = torch.empty(N, 2, dtype=torch.int64)
    with record_waits(root) as waits, torch.no_grad():
        method(own, targets, labels, valid_size, share_totals(method.count(labels, valid_size), 1, seed=0))
    require_no_waits(waits)


@pytest.mark.parametrize(
    "name", ["pspnet_resnet18", "pspnet_resnet101", "deeplabv3_resnet18", "fcn_resnet50"]
)
def test_a_forward_pass(root: Path, fake: None, name: str) -> None:
    assert name in NETWORKS
    with CUDA:
        network = build_network(network_config(name, CLASSES, "kdcache"))
        crops = torch.empty(N, *CROP, 3, dtype=torch.uint8)
        valid_size = torch.empty(N, 2, dtype=torch.int64)
    RGB_IMAGENET(crops, valid_size)  # the first time its mean and deviation go to the device
    with record_waits(root) as waits, torch.no_grad():
        network(RGB_IMAGENET(crops, valid_size))
    require_no_waits(waits)


@pytest.mark.parametrize("target", ["logits", "features"])
@pytest.mark.parametrize("name", [name for name in CODECS if name != "auto"])
def test_a_codec_both_ways(root: Path, name: str, target: str) -> None:
    torch.manual_seed(0)
    channels = CLASSES if target == "logits" else 64
    batches = [torch.randn(N, channels, *MAP) for _ in range(2)]
    argument = "8" if name == "pca" else None
    codec = fit_codec(name if argument is None else f"{name}:{argument}", batches)
    with fake_cuda():
        values = torch.empty(N, channels, *MAP, device=CUDA)
        codec.decode(codec.encode(values)[0])  # the first time its tables go to the device
        with record_waits(root) as waits:
            codes, faults = codec.encode(values)
            codec.decode(codes)
        assert codes.is_cuda and faults.is_cuda
    require_no_waits(waits)


def test_replay(root: Path, fake: None) -> None:
    policy = ViewPolicy(crop_height_px=CROP[0], crop_width_px=CROP[1], photometric=True)

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=CUDA)

    boxes = Boxes(empty(4 * 10_000), empty(N, 17, dtype=torch.int64))
    with record_waits(root) as waits:
        image, label, valid_size = replay_boxes(boxes, policy)
    assert (image.shape, label.shape, valid_size.shape) == ((N, *CROP, 3), (N, *CROP), (N, 2))
    require_no_waits(waits)
