"""Codecs: how a target becomes a stored array of numbers, with an error bound that holds for every entry.

A codec is named by a request (`fp16`, `uniform`, `uniform:0.125`). What the request leaves open is fitted once a
store, from a sample of the teacher's outputs, and kept in the store's calibration. Encoding and decoding are torch
on whichever device the data is; the codes are plain integers or floats under standard Zarr codecs, so that any Zarr
reader opens them. There are no scales per entry and nothing is clipped: a value outside the codes' range is a fault.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from kdcache.cache.errors import StoreDamagedError, UsageError

FAULTS = {1: "not finite", 2: "outside the range of the codec"}

_STEPS_PER_DEVIATION = (
    32  # `uniform` without a step: 32 to 64 steps a standard deviation, relative MSE <= 8e-5
)
_INT16_MAX = 32767


class Codec(ABC):
    """A fitted codec: everything that encoding and decoding of one target need."""

    name: ClassVar[str]
    dtype: ClassVar[str]  # of the stored codes, as numpy spells it

    @classmethod
    @abstractmethod
    def check(cls, argument: str | None) -> str | None:
        """The canonical form of the text behind the colon of a request. Raises UsageError."""

    @classmethod
    @abstractmethod
    def fit(
        cls,
        argument: str | None,
        sample: Sequence[Tensor],  # each (N, C, h, w) float32
    ) -> Self:
        """The codec with all that `argument` leaves open measured on `sample`."""

    @abstractmethod
    def encode(
        self,
        target: Tensor,  # (N, C, h, w) float32
    ) -> tuple[Tensor, Tensor]:
        """Codes (N, C, h, w) of `dtype`, and a fault a row (N,) uint8: 0, or a key of FAULTS."""

    @abstractmethod
    def decode(
        self,
        codes: Tensor,  # (N, C, h, w) of dtype
    ) -> Tensor:
        """The target (N, C, h, w) float32, on the device of the codes."""

    @abstractmethod
    def error_bound(
        self,
        target: Tensor,  # any shape, float32
    ) -> Tensor:
        """The largest |decode(encode(x)) - x| at each element, same shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON values that `codec_from_dict` turns back into an equal codec."""

    @classmethod
    @abstractmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of to_dict. Raises KeyError, TypeError or ValueError on values that cannot be."""


@dataclass(frozen=True, slots=True)
class Fp16(Codec):
    """IEEE half precision, rounded to nearest: 11 significant bits, nothing to fit."""

    name: ClassVar[str] = "fp16"
    dtype: ClassVar[str] = "float16"

    @classmethod
    def check(cls, argument: str | None) -> str | None:
        if argument is not None:
            raise UsageError(f"codec fp16 takes no argument, got {argument!r}", hint="write fp16")
        return None

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        return cls()

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes = target.to(torch.float16)
        return codes, _faults(target, inside=torch.isfinite(codes))

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
    of the offset; the high bytes, nearly all alike, cost little behind the byte shuffle.
    """

    name: ClassVar[str] = "uniform"
    dtype: ClassVar[str] = "int16"

    step: float
    offsets: tuple[int, ...]  # in steps, one a channel

    @classmethod
    def check(cls, argument: str | None) -> str | None:
        if argument is None:
            return None
        try:
            step = float(argument)
            exact = math.isfinite(step) and step > 0 and math.frexp(step)[0] == 0.5
        except ValueError:
            exact = False
        if not exact or not 2.0**-16 <= step <= 2.0**16:
            raise UsageError(
                f"codec uniform: the step must be a power of two from 2^-16 to 2^16, got {argument!r}",
                hint="for example uniform:0.125, or uniform to have the step measured",
            )
        return repr(step)

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        batches = [batch.detach().to("cpu") for batch in sample]
        values = sum(batch.numel() for batch in batches)
        # Batch by batch: a sample of features in float64 at once would take gigabytes.
        totals = [batch.sum(dim=(0, 2, 3), dtype=torch.float64) for batch in batches]
        means = torch.stack(totals).sum(dim=0) * len(totals[0]) / values
        if argument is not None:
            step = float(argument)
        else:
            squares = [(batch.double() - means[:, None, None]).square().sum() for batch in batches]
            deviation = math.sqrt(float(torch.stack(squares).sum()) / values)
            floor = 2.0**-10 * max(1.0, float(means.abs().max()))  # a constant sample has no deviation
            step = 2.0 ** math.floor(math.log2(max(deviation, floor) / _STEPS_PER_DEVIATION))
        return cls(step=step, offsets=tuple(int(o) for o in (means / step).round().tolist()))

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        codes = (target / self.step).round_() - self._offsets(target.device)
        faults = _faults(target, inside=codes.abs() <= _INT16_MAX)
        return codes.clamp_(-_INT16_MAX, _INT16_MAX).nan_to_num_(0.0).to(torch.int16), faults

    def decode(self, codes: Tensor) -> Tensor:
        return (codes.to(torch.float32) + self._offsets(codes.device)) * self.step

    def error_bound(self, target: Tensor) -> Tensor:
        return torch.full_like(target, self.step / 2)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step, "offsets": list(self.offsets)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        step, offsets = float(fields["step"]), tuple(int(o) for o in fields["offsets"])
        if not (math.isfinite(step) and step > 0) or any(abs(o) >= 2**23 for o in offsets):
            raise ValueError(f"uniform codec with step {step} and offsets {offsets[:4]}...")
        return cls(step=step, offsets=offsets)

    def _offsets(self, device: torch.device) -> Tensor:
        return torch.tensor(self.offsets, dtype=torch.float32, device=device)[:, None, None]  # (C, 1, 1)


CODECS: dict[str, type[Codec]] = {"fp16": Fp16, "uniform": Uniform}


def canonical_request(request: str) -> str:
    """`request` in the one form that goes into a store's key. Raises UsageError for an unknown or malformed one."""
    name, argument = _split(request)
    argument = CODECS[name].check(argument)
    return name if argument is None else f"{name}:{argument}"


def fit_codec(
    request: str,
    sample: Sequence[Tensor],  # each (N, C, h, w) float32
) -> Codec:
    """The codec that `request` names, fitted to a sample of the teacher's outputs."""
    name, argument = _split(canonical_request(request))
    return CODECS[name].fit(argument, sample)


def stored_dtype(request: str) -> str:
    """The dtype of the codes that `request` leads to, known before anything is fitted."""
    return CODECS[_split(request)[0]].dtype


def codec_from_dict(fields: dict[str, Any]) -> Codec:
    """The codec that a store's calibration describes. Raises StoreDamagedError for one that cannot be."""
    try:
        return CODECS[fields["name"]].from_dict(fields)
    except (KeyError, TypeError, ValueError) as error:
        known = ", ".join(CODECS)
        raise StoreDamagedError(
            f"the calibration names a codec that cannot be used: {error!r} (known: {known})",
            hint="the store may need a newer kdcache",
        ) from None


def _split(request: str) -> tuple[str, str | None]:
    name, colon, argument = request.partition(":")
    if name not in CODECS:
        raise UsageError(f"unknown codec {name!r}", hint=f"one of: {', '.join(CODECS)}")
    return name, argument if colon else None


def _faults(
    target: Tensor,  # (N, C, h, w)
    inside: Tensor,  # (N, C, h, w) bool
) -> Tensor:
    finite = torch.isfinite(target).flatten(1).all(dim=1)
    within = inside.flatten(1).all(dim=1)
    return torch.where(finite, torch.where(within, 0, 2), 1).to(torch.uint8)
