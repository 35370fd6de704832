"""Normalisation: how each code base turns uint8 crops into a network's input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from kdcache.cache.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Turns uint8 RGB crops into a network's input: reorders channels, subtracts the mean, divides, zeroes the padding.

    mean and std are in units of 0..255, in the given channel order.
    """

    channel_order: str = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    def __post_init__(self) -> None:
        if self.channel_order not in ("rgb", "bgr"):
            raise UsageError(f"unknown channel order {self.channel_order!r}; known: rgb, bgr")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise UsageError(f"normalisation needs 3 means and 3 stds, not {self.mean} and {self.std}")
        if min(self.std) <= 0.0:
            raise UsageError(f"normalisation std must be above 0, not {self.std}")

    def __call__(
        self,
        crops: Tensor,  # (N, H, W, 3) uint8 RGB
        valid_size: Tensor | None = None,  # (N, 2) integer height and width of the part that is not padding
    ) -> Tensor:
        """(N, 3, H, W) float32 in channels-last memory, 0 outside the valid part, on the device of the crops."""
        if crops.dtype != torch.uint8 or crops.ndim != 4 or crops.shape[3] != 3:
            raise UsageError(f"crops must be (N, H, W, 3) uint8, not {tuple(crops.shape)} {crops.dtype}")
        # Inside a compiled graph constants are free, and lru_cache would break the graph.
        constants = _constants if torch.compiler.is_compiling() else _kept_constants
        mean, std = constants(self.mean, self.std, crops.device)
        pixels = crops.flip(3) if self.channel_order == "bgr" else crops
        pixels = (pixels.float() - mean) / std
        if valid_size is not None:
            pixels.masked_fill_(~_inside(valid_size, crops)[..., None], 0.0)
        return pixels.permute(0, 3, 1, 2)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"channel_order": self.channel_order, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises KeyError, TypeError or UsageError for invalid values."""
        mean, std = tuple(values["mean"]), tuple(values["std"])
        return cls(channel_order=values["channel_order"], mean=mean, std=std)


RGB_IMAGENET = Normalisation()
BGR_CAFFE = Normalisation(
    channel_order="bgr", mean=(104.00698793, 116.66876762, 122.67891434), std=(1.0, 1.0, 1.0)
)


def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)


@lru_cache(maxsize=8)
def _kept_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The constants on a device, made once: a copy from pageable memory waits, in every step, for all queued work."""
    # Not as inference tensors: a teacher may ask first, and then a student's backward pass uses them.
    with torch.inference_mode(False):
        return _constants(mean, std, device)


def _inside(valid_size: Tensor, crops: Tensor) -> Tensor:
    """(N, H, W) bool, True for pixels of the image."""
    height, width = crops.shape[1:3]
    valid_size = valid_size.to(crops.device)
    rows = torch.arange(height, device=crops.device) < valid_size[:, :1]
    columns = torch.arange(width, device=crops.device) < valid_size[:, 1:]
    return rows[:, :, None] & columns[:, None, :]
