"""Scalar codecs: every number by itself, and differences of neighbours before the lossless stage."""

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
_STEPS_PER_DEVIATION = 32  # without a step: 32 to 64 steps a standard deviation, relative MSE <= 8e-5
# The codes of a channel lie around this one: their high bytes are all zero then and cost nothing behind the byte
# shuffle, where around 0 they would change with the sign (0.65 against 0.56 bytes a value on CamVid's logits).
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
    in float32 and |error| <= step / 2 holds to the bit. int16 spans some 500 standard deviations to either side
    of the offset.
    """

    name: ClassVar[str] = "uniform"

    step: float
    offsets: tuple[int, ...]  # in steps, one a channel

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        means, deviation = channel_statistics(sample)
        step = fitted_step(deviation, _STEPS_PER_DEVIATION) if argument is None else float(argument)
        offsets = (means / step).round() - _MIDDLE
        return cls(step=step, offsets=tuple(int(o) for o in offsets.tolist()))

    def fits(self, shape: Shape) -> bool:
        return len(self.offsets) == shape[0]

    def packing(self, shape: Shape) -> Packing:
        return Packing(dtype="int16", shape=shape, axes=_MAP_AXES, shuffle="shuffle")

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes = (target / self.step).round_() - self._offsets(target.device)
        faults = find_faults(target, inside=codes.abs() <= INT16_MAX)
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
        if any(abs(o) >= 2**23 for o in offsets):
            raise ValueError(f"{cls.name} codec with offsets {offsets[:4]}...")
        return cls(step=require_step(cls.name, step), offsets=offsets)

    def _offsets(self, device: torch.device) -> Tensor:
        return _offsets(self.offsets, device)


@dataclass(frozen=True, slots=True)
class Delta(Uniform):
    """`uniform`, then differences to the left and to the upper neighbour, in int16 that wraps, zigzag.

    A map is smooth, so differences are small, and sums that wrap undo differences that wrapped.
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
            sums = sums.cumsum(dim=axis, dtype=torch.int32).to(torch.int16)
        return Uniform.decode(self, sums)


@lru_cache(maxsize=16)
def _offsets(offsets: tuple[int, ...], device: torch.device) -> Tensor:
    """(C, 1, 1) float32; on the device once, since a copy from ordinary memory waits for all work before it."""
    return torch.tensor(offsets, dtype=torch.float32, device=device)[:, None, None]


def channel_statistics(
    sample: Sequence[Tensor],  # each (N, C, h, w)
) -> tuple[Tensor, float]:
    """Means by channel, (C,) float64, and the deviation of all values from them."""
    batches = [batch.detach().to("cpu") for batch in sample]
    values = sum(batch.numel() for batch in batches)
    # Batch by batch: a sample of features in float64 at once would take gigabytes.
    totals = torch.stack([batch.sum(dim=(0, 2, 3), dtype=torch.float64) for batch in batches]).sum(dim=0)
    means = totals * len(totals) / values
    squares = [(batch.double() - means[:, None, None]).square().sum() for batch in batches]
    deviation = math.sqrt(float(torch.stack(squares).sum()) / values)
    return means, max(deviation, 2.0**-10 * max(1.0, float(means.abs().max())))  # a constant has none


def fitted_step(deviation: float, steps_per_deviation: float) -> float:
    """The largest power of two that leaves at least so many steps to a standard deviation."""
    return 2.0 ** math.floor(math.log2(deviation / steps_per_deviation))
