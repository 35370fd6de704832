"""ResNet with output stride 8, from torchvision's blocks.

Layers 3 and 4 keep the resolution of layer 2 and dilate instead (Yu et al., 2017, arXiv 1705.09914). The public
segmentation code bases differ in details, and weights load without an error into a network with the wrong details. So
each detail is an argument here: the stem, the dilation of the first block of a stage, the second convolution of a
BasicBlock, and how the max pool rounds.

With the 7x7 stem the parameters have the names of torchvision's ResNet, so its ImageNet files load completely.
"""

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}

STEMS: dict[str, tuple[int, ...]] = {
    "7x7": (64,),  # one 7x7 convolution
    "32-32-64": (32, 32, 64),  # three 3x3 convolutions: mmsegmentation's ResNetV1c
    "64-64-128": (
        64,
        64,
        128,
    ),  # three 3x3 convolutions: the Caffe PSPNet's, and all code bases that follow it
}


class DilatedResNet(nn.Module):
    """The backbone of every network here: (N, 3, H, W) float -> layer3 and layer4, both at stride 8.

    contract_dilation: the first block of layer 3 (4) still dilates by 1 (2), because its input is the stage before
        (mmsegmentation's term). False: by 2 (4), like the rest of its stage.
    dilate_second_conv: the second convolution of a BasicBlock dilates too. mmsegmentation's does not.
    pool_ceil_mode: the max pool rounds its output size up, so that 512 pixels become 65 cells.
    """

    def __init__(
        self,
        name: str,
        *,
        stem: str = "7x7",
        contract_dilation: bool = True,
        dilate_second_conv: bool = True,
        pool_ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        block, depths = BLOCKS[name]
        widths = STEMS[stem]
        if len(widths) == 1:
            self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        if len(widths) == 3:
            self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(widths[1])
            self.conv3 = nn.Conv2d(widths[1], widths[2], 3, padding=1, bias=False)
            self.bn3 = nn.BatchNorm2d(widths[2])
        self.deep_stem = len(widths) == 3
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=pool_ceil_mode)

        channels = widths[-1]
        self.layer1 = _stage(block, channels, 64, depths[0])
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2])
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3])
        for stage, dilation in ((self.layer3, 2), (self.layer4, 4)):
            first = dilation // 2 if contract_dilation else dilation
            _dilate(stage, first, dilation, dilate_second_conv)

    def forward(
        self,
        x: Tensor,  # (N, 3, H, W) float
    ) -> tuple[Tensor, Tensor]:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.deep_stem:
            x = self.relu(self.bn2(self.conv2(x)))
            x = self.relu(self.bn3(self.conv3(x)))
        x = self.layer2(self.layer1(self.maxpool(x)))
        layer3 = self.layer3(x)
        return layer3, self.layer4(layer3)


def _stage(
    block: type[BasicBlock] | type[Bottleneck], channels: int, planes: int, depth: int, stride: int = 1
) -> nn.Sequential:
    width = planes * block.expansion
    downsample = None
    if stride != 1 or channels != width:
        downsample = nn.Sequential(
            nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
        )
    blocks = [block(channels, planes, stride, downsample)]
    blocks += [block(width, planes) for _ in range(1, depth)]
    return nn.Sequential(*blocks)


def _dilate(stage: nn.Sequential, first: int, rest: int, second_conv: bool) -> None:
    # Set after construction, because torchvision's BasicBlock refuses a dilation in its constructor.
    for index, block in enumerate(stage):
        dilation = first if index == 0 else rest
        if isinstance(block, Bottleneck):
            _set_dilation(block.conv2, dilation)
        elif isinstance(block, BasicBlock):
            _set_dilation(block.conv1, dilation)
            _set_dilation(block.conv2, rest if second_conv else 1)


def _set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    conv.dilation = (dilation, dilation)
    conv.padding = (dilation, dilation)
