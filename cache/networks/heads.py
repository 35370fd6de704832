"""The heads on a backbone's maps: PSPNet's, DeepLabV3's, FCN's, and the auxiliary one.

Every head keeps the size of its map and ends in a 3x3 ConvNorm, `bottleneck`. Its output is the feature that is
distilled; the classifier comes after the head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PYRAMID_BINS = (1, 2, 3, 6)
ATROUS_RATES = (12, 24, 36)
ASPP_DROPOUT = 0.5


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and ReLU; with slope > 0 a leaky ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        dilation: int = 1,
        bias: bool = False,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=bias
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return F.leaky_relu(x, self.slope, inplace=True) if self.slope else F.relu(x, inplace=True)


class PyramidHead(nn.Module):
    """Pyramid pooling and the bottleneck of PSPNet (arXiv 1612.01105, section 3.2)."""

    def __init__(
        self,
        channels: int,
        branch_channels: int,
        head_channels: int,
        *,
        align_corners: bool,
        input_first: bool,
        slope: float,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.input_first = input_first
        self.branches = nn.ModuleList(
            ConvNorm(channels, branch_channels, 1, slope=slope) for _ in PYRAMID_BINS
        )
        joined = channels + len(PYRAMID_BINS) * branch_channels
        self.bottleneck = ConvNorm(joined, head_channels, 3, slope=slope)

    def forward(
        self,
        x: Tensor,  # (N, B, h, w)
    ) -> Tensor:  # (N, D, h, w)
        priors = [
            self._prior(x, bins, branch) for bins, branch in zip(PYRAMID_BINS, self.branches, strict=True)
        ]
        # Concatenated either way the network works; a checkpoint fits only the order that it was trained with.
        joined = [x, *priors] if self.input_first else [*priors, x]
        features: Tensor = self.bottleneck(torch.cat(joined, dim=1))
        return features

    def _prior(self, x: Tensor, bins: int, branch: nn.Module) -> Tensor:
        pooled = branch(F.adaptive_avg_pool2d(x, bins))
        return F.interpolate(pooled, x.shape[2:], mode="bilinear", align_corners=self.align_corners)


class AtrousHead(nn.Module):
    """Atrous spatial pyramid pooling, its projection and the bottleneck (arXiv 1706.05587, section 3.3)."""

    def __init__(self, channels: int, branch_channels: int, head_channels: int, *, slope: float) -> None:
        super().__init__()
        width = branch_channels
        branches = [ConvNorm(channels, width, 3, dilation=rate, slope=slope) for rate in ATROUS_RATES]
        self.branches = nn.ModuleList([ConvNorm(channels, width, 1, slope=slope), *branches])
        self.pool = ConvNorm(channels, width, 1, slope=slope)
        self.project = ConvNorm((len(self.branches) + 1) * width, width, 1, slope=slope)
        self.dropout = nn.Dropout(ASPP_DROPOUT)
        self.bottleneck = ConvNorm(width, head_channels, 3, slope=slope)

    def forward(
        self,
        x: Tensor,  # (N, B, h, w)
    ) -> Tensor:  # (N, D, h, w)
        pooled = self.pool(F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[2:])
        joined = torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1)
        features: Tensor = self.bottleneck(self.dropout(self.project(joined)))
        return features


class ConvHead(nn.Module):
    """Only the bottleneck: the head of torchvision's FCN."""

    def __init__(self, channels: int, head_channels: int, *, slope: float) -> None:
        super().__init__()
        self.bottleneck = ConvNorm(channels, head_channels, 3, slope=slope)

    def forward(
        self,
        x: Tensor,  # (N, B, h, w)
    ) -> Tensor:  # (N, D, h, w)
        features: Tensor = self.bottleneck(x)
        return features


class AuxiliaryHead(nn.Module):
    """Logits from layer 3, for deep supervision (arXiv 1612.01105, section 3.3)."""

    def __init__(
        self, channels: int, aux_channels: int, classes: int, *, bias: bool, slope: float, dropout: nn.Module
    ) -> None:
        super().__init__()
        self.block = ConvNorm(channels, aux_channels, 3, bias=bias, slope=slope)
        self.dropout = dropout
        self.classifier = nn.Conv2d(aux_channels, classes, 1)

    def forward(
        self,
        x: Tensor,  # (N, B / 2, h, w)
    ) -> Tensor:  # (N, C, h, w)
        logits: Tensor = self.classifier(self.dropout(self.block(x)))
        return logits
