"""Scalar codecs: every number is quantised by itself; `delta` then takes differences of neighbours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from kdcache.cache.codecs.codec import Codec, Shape, find_faults, require_step, unzigzag, zigzag
from kdcache.cache.codecs.packing import Packing

INT16_MAX = 32767
_STEPS_PER_DEVIATION = 32  # of a fitted step: 32 to 64 steps per standard deviation, relative MSE <= 8e-5
# The codes of a channel are centred here, not at 0: then their high bytes are nearly always zero and compress to
# nothing. Around 0 they would change with every sign (0.65 against 0.56 bytes a value on CamVid's logits).
_MIDDLE = 128

_MAP_AXES = ("channel", "y", "x")


@dataclass(frozen=True, slots=True)
class Fp16(Codec):
    """IEEE half precision, rounded to nearest: 11 significant bits, nothing to fit."""

    name: ClassVar[str] = "fp16"

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        return cls()

    def packing(self, shape: Shape) -> Packing:
        return Packing(dtype="float16", shape=shape, axes=_MAP_AXES, shuffle="shuffle")

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes = target.to(torch.float16)
        return codes, find_faults(target, inside=torch.isfinite(codes))

    def decode(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def error_bound(self, target: Tensor) -> Tensor:
        return (target.abs() * 2.0**-11).clamp_min(2.0**-25)  # half an ulp; below 2^-14 halves are subnormal

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        return cls()


@dataclass(frozen=True, slots=True)
class Uniform(Codec):
    """Uniform scalar quantisation: one step for the whole store, one offset a channel, int16 codes.

    The step is a power of two and the offsets are multiples of it, so x / step and (code + offset) * step are exact
    in float32, and |error| <= step / 2 is strictly true. int16 covers some 500 standard deviations on either side of
    the offset.
    """

    name: ClassVar[str] = "uniform"

    step: float
    offsets: tuple[int, ...]  # in steps, one for each channel

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        means, deviation = channel_statistics(sample)
        step = fitted_step(deviation, _STEPS_PER_DEVIATION) if argument is None else float(argument)
        offsets = (means / step).round() - _MIDDLE  # whole steps, so that adding them back is exact
        return cls(step=step, offsets=tuple(int(o) for o in offsets.tolist()))

    def fits(self, shape: Shape) -> bool:
        return len(self.offsets) == shape[0]

    def packing(self, shape: Shape) -> Packing:
        return Packing(dtype="int16", shape=shape, axes=_MAP_AXES, shuffle="shuffle")

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes = (target / self.step).round_() - self._offsets(target.device)
        faults = find_faults(target, inside=codes.abs() <= INT16_MAX)
        # Rows with a fault are refused later. They are made valid here so that the cast is defined on every device.
        return codes.clamp_(-INT16_MAX, INT16_MAX).nan_to_num_(0.0).to(torch.int16), faults

    def decode(self, codes: Tensor) -> Tensor:
        return (codes.to(torch.float32) + self._offsets(codes.device)) * self.step

    def error_bound(self, target: Tensor) -> Tensor:
        return torch.full_like(target, self.step / 2)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step, "offsets": list(self.offsets)}

    def summary(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        step, offsets = float(fields["step"]), tuple(int(o) for o in fields["offsets"])
        if any(abs(o) >= 2**23 for o in offsets):  # beyond it code + offset is not exact in float32
            raise ValueError(f"{cls.name} codec with offsets {offsets[:4]}...")
        return cls(step=require_step(cls.name, step), offsets=offsets)

    def _offsets(self, device: torch.device) -> Tensor:
        return _offsets(self.offsets, device)


@dataclass(frozen=True, slots=True)
class Delta(Uniform):
    """`uniform`, then differences to the left and the upper neighbour, in wrapping int16, then zigzag.

    Maps are smooth, so the differences are small. Differences that wrap are undone by sums that wrap.
    """

    name: ClassVar[str] = "delta"

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes, faults = Uniform.encode(self, target)
        for axis in (3, 2):
            codes = codes.diff(dim=axis, prepend=torch.zeros_like(codes.narrow(axis, 0, 1)))
        return zigzag(codes), faults

    def decode(self, codes: Tensor) -> Tensor:
        sums = unzigzag(codes)
        for axis in (2, 3):
            sums = sums.cumsum(dim=axis, dtype=torch.int32).to(torch.int16)  # the cast wraps, as encode did
        return Uniform.decode(self, sums)


# A copy from pageable memory waits for all work that the device has queued: copy only once
@lru_cache(maxsize=16)
def _offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """The offsets on a device, (C, 1, 1) float32."""
    return torch.tensor(offsets, dtype=torch.float32, device=device)[:, None, None]


def channel_statistics(
    sample: Sequence[Tensor],  # each (N, C, h, w)
) -> tuple[Tensor, float]:
    """The mean of each channel, (C,) float64, and the standard deviation of all values around them."""
    batches = [batch.detach().to("cpu") for batch in sample]
    values = sum(batch.numel() for batch in batches)
    # One batch at a time: all features of a sample in float64 would take gigabytes.
    totals = torch.stack([batch.sum(dim=(0, 2, 3), dtype=torch.float64) for batch in batches]).sum(dim=0)
    means = totals * len(totals) / values
    squares = [(batch.double() - means[:, None, None]).square().sum() for batch in batches]
    deviation = math.sqrt(float(torch.stack(squares).sum()) / values)
    # A constant target has deviation 0, which no step fits.
    return means, max(deviation, 2.0**-10 * max(1.0, float(means.abs().max())))


def fitted_step(deviation: float, steps_per_deviation: float) -> float:
    """The largest power of two with at least `steps_per_deviation` steps in a standard deviation."""
    return 2.0 ** math.floor(math.log2(deviation / steps_per_deviation))
