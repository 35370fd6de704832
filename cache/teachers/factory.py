"""Teachers from your own Python function, named as `package.module:function`.

A factory is called without arguments and returns an `nn.Module` or a `FactoryTeacher`. The module receives normalised
images, (N, 3, H, W) float32, 0 in the padding. It returns the logits, (N, C, h, w) before any upsampling, as a tensor,
as a NetworkOutput, or in a mapping with the key "logits" (and "features", "aux" and "backbone" if it has them):

    def make() -> FactoryTeacher:
        model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights="DEFAULT")
        return FactoryTeacher(
            module=model,
            taps={"logits": "classifier"},  # the output of a submodule, because the model upsamples its own
            stride_px=8,
            normalisation=RGB_IMAGENET,
            class_map=(0, 7, 15),  # the teacher's class for each class of the dataset
            version="torchvision 0.21",
        )
"""

import hashlib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.cache.errors import TeacherError, UsageError
from kdcache.cache.networks.network import STRIDE_PX, NetworkOutput
from kdcache.cache.networks.normalisation import RGB_IMAGENET, Normalisation
from kdcache.cache.views.view import TARGETS


@dataclass(frozen=True, kw_only=True, slots=True)
class FactoryTeacher:
    """What a factory returns to say more than a bare module can; see the module's docstring.

    taps: target -> dotted name of the submodule whose output it is. Other targets come from the module's own output.
    class_map: for each class of the dataset the teacher's class; applied to logits and aux.
    version: what else determines the outputs, such as the release of the package that makes the network.
    """

    module: nn.Module
    taps: Mapping[str, str] = field(default_factory=dict)
    stride_px: int = STRIDE_PX
    normalisation: Normalisation = RGB_IMAGENET
    class_map: Sequence[int] | None = None
    version: str = ""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.taps) - set(TARGETS)):
            raise TeacherError(f"unknown tap {', '.join(unknown)}; known: {', '.join(TARGETS)}")
        modules = dict(self.module.named_modules())
        for target, name in self.taps.items():
            if name not in modules:
                raise TeacherError(f"tap {target}: the module has no submodule {name!r}")
        if self.stride_px < 1:
            raise TeacherError(f"stride_px must be at least 1, not {self.stride_px}")


def call_factory(name: str) -> FactoryTeacher:
    """Import `package.module:function`, call it, and return its result; a bare module is wrapped.

    Raises:
        UsageError: importing fails, or it is not a function.
        TeacherError: the function raised, or returned something else.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"teacher factory {name}: cannot import {module_name!r}: {error}",
            hint="install the package, or put its folder on PYTHONPATH",
        ) from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UsageError(f"teacher factory {name}: {module_name} has no function {attribute!r}")
    try:
        made = factory()
    except Exception as error:
        raise TeacherError(f"teacher factory {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module | FactoryTeacher):
        raise TeacherError(
            f"teacher factory {name} returned a {type(made).__name__}, not an nn.Module or a FactoryTeacher"
        )
    return made if isinstance(made, FactoryTeacher) else FactoryTeacher(module=made)


def probe_channels(name: str, given: FactoryTeacher, device: torch.device) -> dict[str, int]:
    """Channels of all targets, in the order of TARGETS, found by running the module on one small black image.

    Raises TeacherError if the module fails, gives no logits, or has another stride than declared.
    """
    side = 16 * given.stride_px
    image = torch.zeros((1, 3, side, side), device=device)
    with torch.inference_mode():
        try:
            found = run_module(given.module, given.taps, image)
        except Exception as error:
            raise TeacherError(
                f"teacher factory {name}: its module fails on a (1, 3, {side}, {side}) image: {error}"
            ) from error
    if "logits" not in found:
        raise TeacherError(
            f"teacher factory {name}: its module gives no logits",
            hint='return a tensor or {"logits": tensor}, or tap a submodule',
        )
    for target, value in found.items():
        if value.ndim != 4 or abs(value.shape[2] - 16) > 1 or abs(value.shape[3] - 16) > 1:
            raise TeacherError(
                f"teacher factory {name}: {target} of a {side}x{side} image has shape {tuple(value.shape)}, not "
                f"(1, C, 16, 16) as stride_px={given.stride_px} says",
                hint="tap the map before it is upsampled, or set stride_px",
            )
    return {target: found[target].shape[1] for target in TARGETS if target in found}


def run_module(module: nn.Module, taps: Mapping[str, str], images: Tensor) -> dict[str, Tensor]:
    """The outputs of a module by target, including those of tapped submodules."""
    tapped: dict[str, Tensor] = {}
    hooks = [
        module.get_submodule(path).register_forward_hook(
            # Copied, because the module may change it in place, as ReLU(inplace=True) does.
            partial(_keep_copy, tapped, name)
        )
        for name, path in taps.items()
    ]
    try:
        output = module(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {**_named(output), **tapped}


def state_sha256(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters and buffers: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            # As raw bytes: numpy has no bfloat16.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _keep_copy(
    tapped: dict[str, Tensor], name: str, _module: nn.Module, _inputs: Any, output: Tensor
) -> None:
    tapped[name] = output.clone()


def _named(output: Any) -> dict[str, Tensor]:
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, NetworkOutput):
        output = output._asdict()
    if isinstance(output, Mapping):
        return {name: output[name] for name in TARGETS if isinstance(output.get(name), Tensor)}
    return {}
