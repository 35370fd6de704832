"""The interface of codecs: how a target becomes a stored array of numbers, with an error bound valid for every entry.

    target (N, C, h, w) float32 --encode, on the teacher's device--> codes --pack, on the host--> rows of a Zarr array
                        <--decode, on the student's device--       codes <--unpack, in a reader--

What a request leaves open is fitted once for a store, to a sample of the teacher's outputs, and kept in the store's
calibration. Single entries have no scales, and nothing is clipped: a value out of range is a fault.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.codecs.packing import Packing

MAX_STEP_EXPONENT = 64  # largest exponent of a step read from a store: beyond it float32 would overflow

FAULTS = {1: "not finite", 2: "outside the range of the codec"}

Shape = tuple[int, int, int]  # (C, h, w) of one entry of a target


class Codec(ABC):
    """A fitted codec: everything that is needed to encode and decode one target."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(
        cls,
        argument: str | None,
        sample: Sequence[Tensor],  # each (N, C, h, w) float32
    ) -> "Codec":
        """The codec, with everything that `argument` leaves open measured on `sample`."""

    def fits(self, shape: Shape) -> bool:
        """True if the codec fits targets of this shape. Checked because its numbers come from an untrusted store."""
        return True

    @abstractmethod
    def packing(self, shape: Shape) -> Packing:
        """How the rows of a target of this shape are stored."""

    @abstractmethod
    def encode(
        self,
        target: Tensor,  # (N, C, h, w) float32
    ) -> tuple[Tensor, Tensor]:
        """Codes (N, ...), and one fault for each row, (N,) uint8: 0, or a key of FAULTS."""

    @abstractmethod
    def decode(
        self,
        codes: Tensor,  # (N, ...)
    ) -> Tensor:
        """The target (N, C, h, w) float32, on the device of the codes."""

    def pack(
        self,
        codes: np.ndarray,  # (n, ...) as encode gives them
    ) -> np.ndarray:
        """The rows to store, (n, *packing.shape) of packing.dtype. Most codecs store their codes unchanged."""
        return codes

    def unpack(
        self,
        row: np.ndarray,  # packing.shape of packing.dtype
    ) -> np.ndarray:
        """The codes of one entry, (...): the inverse of `pack`. Raises ValueError for a malformed row."""
        return row

    @abstractmethod
    def error_bound(
        self,
        target: Tensor,  # (N, C, h, w) float32
    ) -> Tensor:
        """The largest possible |decode(encode(x)) - x| at each element, same shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON values from which `registry.codec_from_dict` makes an equal codec."""

    def summary(self) -> dict[str, Any]:
        """to_dict without its long tables, for array attributes and for people."""
        return self.to_dict()

    @classmethod
    @abstractmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of to_dict. Raises KeyError, TypeError or ValueError for invalid values."""


def require_step(codec: str, step: float) -> float:
    """The step of a codec that was read from a store. Raises ValueError for one that decodes to zero or infinity."""
    if not 2.0**-MAX_STEP_EXPONENT <= step <= 2.0**MAX_STEP_EXPONENT:  # false for NaN too
        raise ValueError(f"{codec} codec with step {step}")
    return step


def find_faults(
    target: Tensor,  # (N, C, h, w)
    inside: Tensor,  # (N, ...) bool: True where the code is in range
) -> Tensor:
    """One fault for each row, (N,) uint8, see FAULTS. Stays on the device: reading it would make the build wait."""
    finite = torch.isfinite(target).flatten(1).all(dim=1)
    within = inside.flatten(1).all(dim=1)
    # Not finite comes first: NaN is out of range too, and the message should name the cause.
    return torch.where(finite, torch.where(within, 0, 2), 1).to(torch.uint8)


def zigzag(codes: Tensor) -> Tensor:
    """Signed integers as unsigned: 0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ...

    Small numbers of both signs then have zero high bits, which compress well. int16 in, int16 out; read it as uint16.
    """
    return (codes << 1) ^ (codes >> 15)  # the right shift repeats the sign bit: all ones for a negative code


def unzigzag(codes: Tensor) -> Tensor:
    """The inverse of zigzag, int16."""
    # Masked because torch's right shift is arithmetic and would repeat the top bit.
    return ((codes >> 1) & 0x7FFF) ^ -(codes & 1)
