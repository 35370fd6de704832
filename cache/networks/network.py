"""Segmentation networks with output stride 8, for teachers and students.

PSPNet (Zhao et al., 2017, arXiv 1612.01105), DeepLabV3 (Chen et al., 2017, arXiv 1706.05587) and FCN have one
interface: logits before upsampling, the feature before the classifier, the auxiliary head's logits, and layer 4.

The public code bases build "PSPNet-ResNet-101" in four ways. Weights of one load into another without an error, and
then lose several points of mIoU. So every trait in which they differ is a field of `NetworkConfig`, and `PRESETS` lists
the traits of each code base. Sources: open-mmlab/mmsegmentation 1.2.2, winycg/CIRKD dab64db, hszhao/semseg 4f274c3 and
irfanICMLL/structure_knowledge_distillation (SKD) ce208e1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self, get_type_hints

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from kdcache.cache.errors import UsageError, unknown_name
from kdcache.cache.networks.heads import AtrousHead, AuxiliaryHead, ConvHead, PyramidHead
from kdcache.cache.networks.resnet import BLOCKS, STEMS, DilatedResNet

STRIDE_PX = 8
ARCHITECTURES = ("pspnet", "deeplabv3", "fcn")

NETWORKS: dict[str, tuple[str, str]] = {  # name -> (architecture, backbone)
    "pspnet_resnet18": ("pspnet", "resnet18"),
    "pspnet_resnet34": ("pspnet", "resnet34"),
    "pspnet_resnet50": ("pspnet", "resnet50"),
    "pspnet_resnet101": ("pspnet", "resnet101"),
    "deeplabv3_resnet18": ("deeplabv3", "resnet18"),
    "deeplabv3_resnet50": ("deeplabv3", "resnet50"),
    "deeplabv3_resnet101": ("deeplabv3", "resnet101"),
    "fcn_resnet50": ("fcn", "resnet50"),
    "fcn_resnet101": ("fcn", "resnet101"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkConfig:
    """Everything that determines a network, except its weights.

    head_channels is the width of `features`; branch_channels that of one pyramid or ASPP branch (0 for FCN);
    aux_channels the hidden width of the auxiliary head (0: no such head). See `DilatedResNet` for the dilations.
    """

    architecture: str
    backbone: str
    classes: int
    branch_channels: int
    head_channels: int
    aux_channels: int
    stem: str = "7x7"
    contract_dilation: bool = True
    dilate_second_conv: bool = True
    pool_ceil_mode: bool = False
    # In the resize of a pyramid's bins, or of the image pool, to the size of the map
    align_corners: bool = False
    # In the concatenation: the backbone's map comes before the pooled branches, or after
    input_first: bool = True
    head_slope: float = 0.0  # negative slope of every activation in the heads; 0 is ReLU
    aux_bias: bool = False  # of the auxiliary head's 3x3 convolution
    dropout: float = 0.1  # before the classifier
    aux_dropout: float = 0.1
    dropout_channels: bool = True  # drop whole channels (Dropout2d) instead of single values

    def __post_init__(self) -> None:
        _known("architecture", self.architecture, ARCHITECTURES)
        _known("backbone", self.backbone, BLOCKS)
        _known("stem", self.stem, STEMS)
        for name in ("classes", "head_channels"):
            if getattr(self, name) < 1:
                raise UsageError(f"network {name} must be at least 1, not {getattr(self, name)}")
        if self.aux_channels < 0:
            raise UsageError(
                f"network aux_channels must be 0 (no auxiliary head) or more, not {self.aux_channels}"
            )
        if (self.branch_channels > 0) != (self.architecture != "fcn"):
            raise UsageError(
                f"network branch_channels {self.branch_channels} does not suit {self.architecture}: "
                "it must be 0 for fcn, and at least 1 for others"
            )
        for name in ("dropout", "aux_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"network {name} must be in [0, 1), not {getattr(self, name)}")

    @property
    def name(self) -> str:
        """Architecture and backbone, as in "pspnet_resnet18"; a key of `NETWORKS` if the pair is listed there."""
        return f"{self.architecture}_{self.backbone}"

    @property
    def backbone_channels(self) -> int:
        """Channels of layer 4, which is the target `backbone`."""
        return _layer4_channels(self.backbone)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every target that this network gives, in the order of `maps.TARGETS`."""
        widths = {
            "logits": self.classes,
            "features": self.head_channels,
            "aux": self.classes,
            "backbone": self.backbone_channels,
        }
        if self.aux_channels == 0:
            del widths["aux"]
        return widths

    @property
    def min_training_batch(self) -> int:
        """Images that each process needs in training."""
        # After pooling to 1x1 a BatchNorm sees one value per image and channel, and needs two for a variance.
        return 1 if self.architecture == "fcn" else 2

    def map_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """(h, w) of every target: 512 -> 64 (65 if the pool rounds up), 713 -> 90."""
        return _map_length(height_px, self.pool_ceil_mode), _map_length(width_px, self.pool_ceil_mode)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises UsageError for an unknown field or a value of another type."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(f"unknown network field {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        for name, kind in get_type_hints(cls).items():
            if name in values and type(values[name]) is not kind:
                raise UsageError(f"network {name} must be {kind.__name__}, not {values[name]!r}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"incomplete network configuration: {error}") from None


# The traits of each code base. "kdcache" is what this project trains: torchvision's stem, so that its ImageNet weights
# load completely, and the dilations that keep a pretrained network's receptive fields exactly as they were.
PRESETS: dict[str, dict[str, Any]] = {
    "kdcache": {
        "stem": "7x7",
        "contract_dilation": True,
        "dilate_second_conv": True,
        "align_corners": False,
    },
    "mmseg": {
        "stem": "32-32-64",
        "contract_dilation": True,
        "dilate_second_conv": False,
        "align_corners": False,
    },
    "cirkd": {
        "stem": "64-64-128",
        "contract_dilation": True,
        "dilate_second_conv": True,
        "align_corners": True,
        "dropout_channels": False,
    },
    "semseg": {
        "stem": "64-64-128",
        "contract_dilation": False,
        "dilate_second_conv": True,
        "align_corners": True,
    },
    "skd": {
        "stem": "64-64-128",
        "contract_dilation": False,
        "dilate_second_conv": True,
        "align_corners": True,
        "pool_ceil_mode": True,
        "input_first": False,
        "head_slope": 0.01,
        "aux_bias": True,
    },
}


class NetworkOutput(NamedTuple):
    """The result of a forward pass. All maps have stride 8; nothing is upsampled."""

    logits: Tensor  # (N, C, h, w)
    features: Tensor  # (N, D, h, w) after the bottleneck's normalisation and activation, before dropout
    aux: Tensor | None  # (N, C, h, w) logits of the auxiliary head on layer 3
    backbone: Tensor  # (N, B, h, w) layer 4


def network_config(name: str, classes: int, preset: str = "kdcache", **traits: Any) -> NetworkConfig:
    """A network by name, with the traits and widths of a code base; `traits` override single fields.

    Raises:
        UsageError: an unknown name, preset or trait.
    """
    _known("network", name, NETWORKS)
    _known("preset", preset, PRESETS)
    architecture, backbone = NETWORKS[name]
    values = {**PRESETS[preset], **_widths(architecture, backbone, preset), **traits}
    return NetworkConfig.from_dict(
        {"architecture": architecture, "backbone": backbone, "classes": classes, **values}
    )


def build_network(config: NetworkConfig) -> "SegmentationNetwork":
    """A network with random weights: He's, but small ones in the classifiers, so that the first loss is near log C.

    Residual branches start at zero (Goyal et al., 2017, arXiv 1706.02677, section 5.1), as in mmsegmentation.
    """
    return SegmentationNetwork(config)


class SegmentationNetwork(nn.Module):
    """Backbone, head, classifier and optional auxiliary head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = DilatedResNet(
            config.backbone,
            stem=config.stem,
            contract_dilation=config.contract_dilation,
            dilate_second_conv=config.dilate_second_conv,
            pool_ceil_mode=config.pool_ceil_mode,
        )
        self.head = _head(config)
        self.dropout = _dropout(config, config.dropout)
        self.classifier = nn.Conv2d(config.head_channels, config.classes, 1)
        self.aux = _aux_head(config)
        self._initialise()

    def forward(
        self,
        x: Tensor,  # (N, 3, H, W) float, normalised
        with_aux: bool = True,
    ) -> NetworkOutput:
        """The maps of a batch. with_aux=False skips the auxiliary head, 7 % of the work of a PSPNet-ResNet-101."""
        layer3, layer4 = self.backbone(x)
        features = self.head(layer4)
        logits = self.classifier(self.dropout(features))
        aux = self.aux(layer3) if self.aux is not None and with_aux else None
        return NetworkOutput(logits, features, aux, layer4)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)
        for classifier in (self.classifier, *([] if self.aux is None else [self.aux.classifier])):
            nn.init.normal_(classifier.weight, std=0.01)


def _head(config: NetworkConfig) -> nn.Module:
    channels, slope = config.backbone_channels, config.head_slope
    if config.architecture == "pspnet":
        return PyramidHead(
            channels,
            config.branch_channels,
            config.head_channels,
            align_corners=config.align_corners,
            input_first=config.input_first,
            slope=slope,
        )
    if config.architecture == "deeplabv3":
        return AtrousHead(channels, config.branch_channels, config.head_channels, slope=slope)
    return ConvHead(channels, config.head_channels, slope=slope)


def _aux_head(config: NetworkConfig) -> AuxiliaryHead | None:
    if config.aux_channels == 0:
        return None
    return AuxiliaryHead(
        config.backbone_channels // 2,
        config.aux_channels,
        config.classes,
        bias=config.aux_bias,
        slope=config.head_slope,
        dropout=_dropout(config, config.aux_dropout),
    )


def _dropout(config: NetworkConfig, probability: float) -> nn.Module:
    return nn.Dropout2d(probability) if config.dropout_channels else nn.Dropout(probability)


def _widths(architecture: str, backbone: str, preset: str) -> dict[str, Any]:
    # All code bases use a quarter of layer 4's width (512 or 2048), and an eighth in the auxiliary head. Exceptions:
    full = _layer4_channels(backbone)
    branch, head, aux = full // 4, full // 4, full // 8
    if preset == "skd":
        aux = full // 4
    if architecture == "fcn":
        branch = 0
    elif architecture == "deeplabv3":
        branch = head = 512 if preset == "cirkd" else 256
    elif preset == "cirkd" and full == 2048:
        head = 256
    widths: dict[str, Any] = {"branch_channels": branch, "head_channels": head, "aux_channels": aux}
    if preset == "kdcache" and architecture != "pspnet":
        # torchvision's DeepLabV3 and FCN drop single values, and DeepLabV3 has no dropout before its classifier.
        widths |= {"dropout_channels": False, "dropout": 0.0 if architecture == "deeplabv3" else 0.1}
    return widths


def _layer4_channels(backbone: str) -> int:
    expansion: int = BLOCKS[backbone][0].expansion
    return 512 * expansion


def _map_length(length_px: int, ceil_mode: bool) -> int:
    """Cells along one side after the stem (stride 2), the max pool (2) and layer 2 (2)."""
    stem = (length_px - 1) // 2 + 1
    pool = (stem - 1 + ceil_mode) // 2 + 1
    if ceil_mode and 2 * (pool - 1) >= stem + 1:  # PyTorch drops a window that starts in the right padding
        pool -= 1
    return (pool - 1) // 2 + 1


def _known(what: str, value: str, known: Any) -> None:
    if value not in known:
        raise unknown_name(what, value, known)
