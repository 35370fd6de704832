"""Networks: shapes, the meaning of dilations, traits that state dict keys do not show, and input normalisation."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from kdcache.cache.errors import UsageError
from kdcache.cache.networks.network import (
    NETWORKS,
    PRESETS,
    NetworkConfig,
    SegmentationNetwork,
    build_network,
    network_config,
)
from kdcache.cache.networks.normalisation import BGR_CAFFE, RGB_IMAGENET, Normalisation
from kdcache.cache.networks.resnet import DilatedResNet


def on_meta(config: NetworkConfig) -> SegmentationNetwork:
    with torch.device("meta"):
        return build_network(config)


def randomise_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_have_the_declared_channels_and_map_size(name: str, preset: str) -> None:
    config = network_config(name, 7, preset)
    output = on_meta(config)(torch.zeros(2, 3, 120, 201, device="meta"))
    for target, channels in config.channels.items():
        assert getattr(output, target).shape == (2, channels, *config.map_size(120, 201))


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_map_size_is_the_networks_own(ceil_mode: bool) -> None:
    with torch.device("meta"):
        backbone = DilatedResNet("resnet18", pool_ceil_mode=ceil_mode)
    config = network_config("pspnet_resnet18", 2, pool_ceil_mode=ceil_mode)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(17, 1100), st.integers(17, 1100))
    def check(height: int, width: int) -> None:
        pooled = backbone.maxpool(backbone.conv1(torch.zeros(1, 3, height, width, device="meta")))
        assert (
            config.map_size(height, width) == backbone.layer2[0](pooled).shape[2:]
        )  # no later layer strides

    check()


@pytest.mark.parametrize(
    ("name", "preset", "millions"),
    [
        ("pspnet_resnet18", "mmseg", 12.79),
        ("pspnet_resnet101", "mmseg", 67.97),
        ("pspnet_resnet18", "cirkd", 12.92),
        ("pspnet_resnet101", "cirkd", 58.63),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, preset: str, millions: float) -> None:
    network = on_meta(network_config(name, 19, preset))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


def test_seven_by_seven_stem_takes_torchvisions_weights_whole() -> None:
    theirs = resnet50(weights=None, replace_stride_with_dilation=[False, True, True]).eval()
    ours = DilatedResNet("resnet50").eval()
    randomise_norms(theirs)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")}
    ours.load_state_dict(state)
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        assert torch.equal(theirs(image), ours(image)[1].flatten(1))


def strided_layer4(network: nn.Module, image: Tensor) -> Tensor:
    x = network.maxpool(network.relu(network.bn1(network.conv1(image))))
    return network.layer4(network.layer3(network.layer2(network.layer1(x))))


def test_default_dilations_leave_a_pretrained_network_as_it_was() -> None:
    """Every fourth cell is what the network with strides in place of dilations computes."""
    strided = resnet18(weights=None).eval()
    randomise_norms(strided)
    config = network_config("pspnet_resnet18", 2)
    dilated = build_network(config).backbone.eval()
    dilated.load_state_dict({k: v for k, v in strided.state_dict().items() if not k.startswith("fc.")})
    image = torch.randn(1, 3, 129, 193)
    with torch.no_grad():
        torch.testing.assert_close(dilated(image)[1][..., ::4, ::4], strided_layer4(strided, image))


@pytest.mark.parametrize(
    "trait",
    [
        "contract_dilation",
        "dilate_second_conv",
        "pool_ceil_mode",
        "align_corners",
        "input_first",
        "head_slope",
    ],
)
def test_a_trait_loads_silently_and_changes_the_output(trait: str) -> None:
    config = network_config("pspnet_resnet18", 5)
    other = 0.01 if trait == "head_slope" else not getattr(config, trait)
    network = build_network(config).eval()
    changed = build_network(dataclasses.replace(config, **{trait: other})).eval()
    randomise_norms(network)
    changed.load_state_dict(network.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        first, second = network(image).features, changed(image).features
    assert first.shape != second.shape or (first - second).abs().max() > 1e-3


def test_auxiliary_head_is_optional() -> None:
    config = network_config("pspnet_resnet18", 5, aux_channels=0)
    assert "aux" not in config.channels
    assert on_meta(config)(torch.zeros(2, 3, 64, 64, device="meta")).aux is None
    network = on_meta(network_config("pspnet_resnet18", 5))
    assert network(torch.zeros(2, 3, 64, 64, device="meta"), with_aux=False).aux is None


@pytest.mark.parametrize("name", ["pspnet_resnet18", "deeplabv3_resnet18", "fcn_resnet50"])
def test_min_training_batch_is_what_a_batch_norm_takes(name: str) -> None:
    network = build_network(network_config(name, 5)).train()
    batch = network.config.min_training_batch
    assert network(torch.randn(batch, 3, 32, 32)).logits.shape[0] == batch
    if batch > 1:
        with pytest.raises(ValueError, match="more than 1 value"):
            network(torch.randn(batch - 1, 3, 32, 32))


@pytest.mark.parametrize("preset", PRESETS)
def test_config_round_trip(preset: str) -> None:
    config = network_config("deeplabv3_resnet101", 19, preset)
    assert NetworkConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"backbone": "resnet1001"}, "resnet101"),
        ({"architecture": "unet"}, "pspnet"),
        ({"stem": "5x5"}, "7x7"),
        ({"classes": 0}, "classes"),
        ({"classes": "19"}, "classes"),
        ({"align_corners": 1}, "align_corners"),
        ({"dropout": 1.0}, "dropout"),
        ({"aux_channels": -1}, "aux_channels"),
        ({"branch_channels": 0}, "branch_channels"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_config_names_the_field_that_makes_no_sense(change: dict[str, object], named: str) -> None:
    values = network_config("pspnet_resnet18", 19).to_dict()
    with pytest.raises(UsageError) as caught:
        NetworkConfig.from_dict(values | change)
    assert named in f"{caught.value} {caught.value.hint}"


def test_incomplete_config() -> None:
    with pytest.raises(UsageError, match="classes"):
        NetworkConfig.from_dict({"architecture": "pspnet", "backbone": "resnet18"})


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UsageError, match="unknown network 'pspnet_resnet19'") as caught:
        network_config("pspnet_resnet19", 19)
    assert caught.value.hint.startswith("did you mean pspnet_resnet18? one of: ")
    with pytest.raises(UsageError, match="unknown preset 'detectron'") as caught:
        network_config("pspnet_resnet18", 19, "detectron")
    assert "semseg" in caught.value.hint


@pytest.mark.parametrize("normalisation", [RGB_IMAGENET, BGR_CAFFE])
def test_normalisation_is_the_formula_and_zero_in_the_padding(normalisation: Normalisation) -> None:
    generator = np.random.default_rng(0)
    crops = generator.integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    valid_size = [(6, 5), (3, 8)]
    expected = np.zeros((2, 3, 6, 8), np.float64)
    for row, (height, width) in enumerate(valid_size):
        for channel in range(3):
            source = 2 - channel if normalisation.channel_order == "bgr" else channel
            pixels = crops[row, :height, :width, source].astype(np.float64)
            scaled = (pixels - normalisation.mean[channel]) / normalisation.std[channel]
            expected[row, channel, :height, :width] = scaled
    found = normalisation(torch.from_numpy(crops), torch.tensor(valid_size))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert not found[0, :, :, 5:].any()
    assert not found[1, :, 3:].any()
    assert torch.equal(normalisation(torch.from_numpy(crops))[0, :, :, :5], found[0, :, :, :5])


def test_normalisation_round_trip_and_checks() -> None:
    assert Normalisation.from_dict(BGR_CAFFE.to_dict()) == BGR_CAFFE
    with pytest.raises(UsageError, match="rgb, bgr"):
        Normalisation(channel_order="hsv")
    with pytest.raises(UsageError, match="std"):
        Normalisation(std=(1.0, 0.0, 1.0))
    with pytest.raises(UsageError, match="uint8"):
        RGB_IMAGENET(torch.zeros(1, 4, 4, 3))
