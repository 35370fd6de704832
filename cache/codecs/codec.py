"""What a codec is: how one target becomes a stored array of numbers, with an error bound that holds for every entry.

    target (N, C, h, w) float32 --encode, on the teacher's device--> codes --pack, on the host--> rows of a Zarr array
                        <--decode, on the student's device--       codes <--unpack, in a reader--

What a request leaves open is fitted once a store, from a sample of the teacher's outputs, and kept in the store's
calibration. There are no scales per entry and nothing is clipped: a value outside the codes' range is a fault.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.codecs.packing import Packing

MAX_STEP_EXPONENT = 64  # of a codec out of a store: beyond it float32 would overflow

FAULTS = {1: "not finite", 2: "outside the range of the codec"}

Shape = tuple[int, int, int]  # (C, h, w) of one entry of a target


class Codec(ABC):
    """A fitted codec: everything that encoding and decoding of one target need."""

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(
        cls,
        argument: str | None,
        sample: Sequence[Tensor],  # each (N, C, h, w) float32
    ) -> "Codec":
        """The codec with all that `argument` leaves open measured on `sample`."""

    def fits(self, shape: Shape) -> bool:
        """Whether it can have been fitted to targets of that shape; its numbers come from a store."""
        return True

    @abstractmethod
    def packing(self, shape: Shape) -> Packing:
        """How the rows of a target of that shape are stored."""

    @abstractmethod
    def encode(
        self,
        target: Tensor,  # (N, C, h, w) float32
    ) -> tuple[Tensor, Tensor]:
        """Codes (N, ...), and a fault a row (N,) uint8: 0, or a key of FAULTS."""

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
        """The rows to store, (n, *packing.shape) of packing.dtype; most codecs store their codes as they are."""
        return codes

    def unpack(
        self,
        row: np.ndarray,  # packing.shape of packing.dtype
    ) -> np.ndarray:
        """The codes of one entry, (...): the inverse of `pack`. Raises ValueError for a row that cannot be."""
        return row

    @abstractmethod
    def error_bound(
        self,
        target: Tensor,  # (N, C, h, w) float32
    ) -> Tensor:
        """The largest |decode(encode(x)) - x| at each element, same shape."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON values that `codecs.codec_from_dict` turns back into an equal codec."""

    def summary(self) -> dict[str, Any]:
        """to_dict without its long tables: fit for attributes and for people."""
        return self.to_dict()

    @classmethod
    @abstractmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of to_dict. Raises KeyError, TypeError or ValueError on values that cannot be."""


def require_step(codec: str, step: float) -> float:
    """The step of a codec out of a store. Raises ValueError for one that decodes to nothing or to infinity."""
    if not 2.0**-MAX_STEP_EXPONENT <= step <= 2.0**MAX_STEP_EXPONENT:  # false for NaN too
        raise ValueError(f"{codec} codec with step {step}")
    return step


def find_faults(
    target: Tensor,  # (N, C, h, w)
    inside: Tensor,  # (N, ...) bool: codes that fit
) -> Tensor:
    """A fault a row, (N,) uint8, see FAULTS."""
    finite = torch.isfinite(target).flatten(1).all(dim=1)
    within = inside.flatten(1).all(dim=1)
    return torch.where(finite, torch.where(within, 0, 2), 1).to(torch.uint8)


def zigzag(codes: Tensor) -> Tensor:
    """Signed integers as 0, -1, 1, -2, 2, ... -> 0, 1, 2, 3, 4, ...: small ones of either sign share their zero bits.

    int16 in, int16 out; the result is to be read as unsigned.
    """
    return (codes << 1) ^ (codes >> 15)


def unzigzag(codes: Tensor) -> Tensor:
    """The inverse of zigzag, int16."""
    return ((codes >> 1) & 0x7FFF) ^ -(codes & 1)
