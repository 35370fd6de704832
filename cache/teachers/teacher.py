"""The teacher: a fixed network that turns uint8 crops into named targets.

A teacher is a network by name with a checkpoint, or what a factory `package.module:function` returns (factory.py
describes what it must return). `Teacher.identity` contains everything that determines its outputs, so that stores of
different teachers are never confused.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdcache.cache.codecs.precision import true_float32
from kdcache.cache.errors import TeacherError, UsageError, unknown_name
from kdcache.cache.networks.checkpoints import load_checkpoint
from kdcache.cache.networks.network import NETWORKS, STRIDE_PX, NetworkOutput, SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.cache.progress import Progress, silent
from kdcache.cache.teachers.factory import (
    FactoryTeacher,
    call_factory,
    probe_channels,
    run_module,
    state_sha256,
)
from kdcache.cache.teachers.weights import resolve_weights

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A module in evaluation mode on one device, and what is known about it.

    classes is the number of the dataset's classes. class_map gives the teacher's class for each of them (None: the
    same). weights_sha256 is the digest of the checkpoint file, or of a factory's state dict.
    """

    name: str
    module: nn.Module
    normalisation: Normalisation
    classes: int
    channels: dict[str, int]  # target -> channels, in the order of maps.TARGETS
    weights_sha256: str
    precision: str
    device: torch.device
    source: str  # the checkpoint's layout, or the factory
    stride: int = STRIDE_PX
    version: str = ""
    taps: Mapping[str, str] = field(default_factory=dict)
    class_map: tuple[int, ...] | None = None
    _lowered: dict[str, nn.Module] = field(default_factory=dict, repr=False, compare=False)  # by precision

    def identity(self) -> dict[str, Any]:
        """Everything that determines the outputs, as JSON values. The weights' digest replaces path and URL."""
        network = self.module.config.to_dict() if isinstance(self.module, SegmentationNetwork) else None
        return {
            "name": self.name,
            "source": self.source,
            "version": self.version,
            "weights_sha256": self.weights_sha256,
            "network": network,
            "taps": dict(self.taps),
            "class_map": None if self.class_map is None else list(self.class_map),
            "normalisation": self.normalisation.to_dict(),
            "stride_px": self.stride,
            "precision": self.precision,
        }

    def __call__(
        self,
        crops: Tensor,  # (N, H, W, 3) uint8 RGB on the teacher's device
        valid_size: Tensor | None = None,  # (N, 2) integer height and width of the part that is not padding
        targets: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """The targets by name, (N, C, h, w) float32 and contiguous: those named, or all that the teacher has.

        Naming them saves the work of the auxiliary head, and copies. "float32" uses TF32 if torch is set to.

        Raises:
            UsageError: a named target is not one of `channels`.
            TeacherError: a target differs in shape from what the teacher declared.
        """
        names = tuple(self.channels) if targets is None else tuple(dict.fromkeys(targets))
        if missing := [name for name in names if name not in self.channels]:
            raise UsageError(
                f"teacher {self.name} does not give {', '.join(missing)}; it gives {', '.join(self.channels)}"
            )
        dtype = PRECISIONS[self.precision]
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)
        exact = true_float32() if dtype == torch.float32 else nullcontext()
        with torch.inference_mode(), autocast, exact:
            images = self.normalisation(crops, valid_size).contiguous(memory_format=torch.channels_last)
            found = self._run(images, names)
        # Copied outside inference mode, because inference tensors cannot take part in a student's backward pass.
        return {name: self._as_target(name, found[name], crops) for name in names}

    @property
    def classifier(self) -> Callable[[Tensor], Tensor] | None:
        """A function from (N, D, h, w) features, also decoded ones, to (N, C, h, w) logits; float32, on any device.

        None for a factory's module, because it is unknown what turns its features into logits.
        """
        if not isinstance(self.module, SegmentationNetwork):
            return None
        weight, bias = self.module.classifier.weight, self.module.classifier.bias
        assert bias is not None

        def classify(features: Tensor) -> Tensor:
            return F.conv2d(features, weight.to(features.device).float(), bias.to(features.device).float())

        return classify

    def in_float32(self) -> "Teacher":
        """The same teacher, computing in full precision."""
        return replace(self, precision="float32")

    def target_shape(self, target: str, crop_size_px: tuple[int, int]) -> tuple[int, int, int]:
        """(C, h, w) of a target for crops of this (height, width). A factory's module is run once to find it.

        Raises:
            UsageError: the teacher does not give this target.
        """
        if target not in self.channels:
            raise UsageError(
                f"teacher {self.name} does not give {target}; it gives {', '.join(self.channels)}"
            )
        if isinstance(self.module, SegmentationNetwork):
            return self.channels[target], *self.module.config.map_size(*crop_size_px)
        crop = torch.zeros((1, *crop_size_px, 3), dtype=torch.uint8, device=self.device)
        channels, height, width = self(crop, targets=(target,))[target].shape[1:]
        return channels, height, width

    def _run(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        if isinstance(self.module, SegmentationNetwork):
            output: NetworkOutput = self._with_lowered_weights()(images, with_aux="aux" in names)
            return {name: value for name, value in output._asdict().items() if value is not None}
        return run_module(self.module, self.taps, images)

    def _with_lowered_weights(self) -> nn.Module:
        """The network with convolutions in the teacher's precision, made once: outputs are the same to the bit.

        Autocast casts weights that need no gradient again in every call, 68 million of them in a PSPNet-ResNet-101.
        """
        dtype = PRECISIONS[self.precision]
        if dtype == torch.float32:
            return self.module
        if self.precision not in self._lowered:
            lowered = copy.deepcopy(self.module)  # `in_float32` needs the exact weights
            for layer in lowered.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(dtype)
            self._lowered[self.precision] = lowered
        return self._lowered[self.precision]

    def _as_target(self, name: str, found: Tensor, crops: Tensor) -> Tensor:
        if name in ("logits", "aux") and self.class_map is not None:
            found = found[:, list(self.class_map)]
        cells = [-(-side // self.stride) for side in crops.shape[1:3]]
        # Networks round a size up or down: 65 cells of 512 pixels are as good as 64. A wrong stride is farther off.
        close = all(abs(side - cell) <= 1 for side, cell in zip(found.shape[2:], cells, strict=True))
        if found.shape[0] != crops.shape[0] or found.shape[1] != self.channels[name] or not close:
            raise TeacherError(
                f"teacher {self.name} gave {name} of shape {tuple(found.shape)} for crops of "
                f"{tuple(crops.shape)}; expected about ({crops.shape[0]}, {self.channels[name]}, {cells[0]}, "
                f"{cells[1]}) at stride {self.stride}"
            )
        # copy=True: without autocast `to` would return the inference tensor itself.
        return found.to(torch.float32, memory_format=torch.contiguous_format, copy=True)


def load_teacher(
    name: str,
    *,
    weights: str | Path | None = "auto",
    dataset_name: str,
    classes: int,
    device: torch.device | str = "cpu",
    precision: str = "float32",
    progress: Progress = silent,
) -> Teacher:
    """A teacher by name, ready to use.

    Args:
        name: a key of NETWORKS, or a factory as `package.module:function`.
        weights: "auto", a path or a URL. A factory loads its own weights, so it takes only None or "auto".
        dataset_name: the dataset for which "auto" finds weights, such as "cityscapes".
        classes: number of classes of the dataset; the teacher must have as many, or a class map of this length.
        precision: a key of PRECISIONS; the arithmetic uses it by autocast.

    Raises:
        UsageError: an unknown name or precision, or a factory that does not exist.
        NotFoundError: the weights do not exist.
        WeightsError: the weights do not fit.
        TeacherError: the classes do not match, or a factory failed.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision {precision!r}; known: {', '.join(PRECISIONS)}")
    device = torch.device(device)
    if ":" in name:
        if weights not in (None, "auto"):
            raise UsageError(
                f"--weights {weights} has no effect: the factory {name} loads its own weights",
                hint="leave --weights out",
            )
        return _from_factory(name, classes, device, precision)
    if name not in NETWORKS:
        raise unknown_name("teacher", name, NETWORKS, more="or your own factory package.module:function")
    if weights is None:
        raise UsageError(f"teacher {name} needs weights", hint="--weights auto, a file, or a URL")
    path = resolve_weights(weights, network=name, dataset_name=dataset_name, progress=progress)
    checkpoint = load_checkpoint(path)
    if checkpoint.config.name != name:
        raise UsageError(
            f"{path} contains a {checkpoint.config.name}, but the teacher is {name}",
            hint=f"--teacher {checkpoint.config.name}",
        )
    _check_classes(name, checkpoint.config.classes, classes, dataset_name)
    return Teacher(
        name=name,
        module=_prepare(checkpoint.network(), device),
        normalisation=checkpoint.normalisation,
        classes=classes,
        channels=checkpoint.config.channels,
        weights_sha256=checkpoint.sha256,
        precision=precision,
        device=device,
        source=checkpoint.layout,
    )


def _from_factory(name: str, classes: int, device: torch.device, precision: str) -> Teacher:
    given: FactoryTeacher = call_factory(name)
    class_map = None if given.class_map is None else tuple(int(index) for index in given.class_map)
    sha256 = state_sha256(given.module)
    module = _prepare(given.module, device)
    channels = probe_channels(name, given, device)
    if class_map is not None:
        if not class_map or min(class_map) < 0 or max(class_map) >= channels["logits"]:
            raise TeacherError(
                f"factory {name}: class_map must contain classes from 0 to {channels['logits'] - 1}, not {class_map}"
            )
        channels |= {target: len(class_map) for target in ("logits", "aux") if target in channels}
    _check_classes(name, channels["logits"], classes, "the dataset")
    return Teacher(
        name=name,
        module=module,
        normalisation=given.normalisation,
        classes=classes,
        channels=channels,
        weights_sha256=sha256,
        precision=precision,
        device=device,
        source=f"factory {name}",
        stride=given.stride_px,
        version=given.version,
        taps=dict(given.taps),
        class_map=class_map,
    )


def _prepare(module: nn.Module, device: torch.device) -> nn.Module:
    # Channels-last weights make torch's convolutions faster on CPUs and on GPUs with tensor cores.
    return module.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _check_classes(name: str, found: int, classes: int, dataset_name: str) -> None:
    if found != classes:
        raise TeacherError(
            f"teacher {name} has {found} classes, but {dataset_name} has {classes}",
            hint="use weights trained on this dataset, or a factory with a class_map",
        )
