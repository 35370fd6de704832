"""Packing: how the rows of a target or of an input lie in a Zarr array. It does not import torch, so that specs are read quickly."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Shuffle = Literal["shuffle", "bitshuffle", "noshuffle"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How rows lie in a Zarr array: the codec's part of its metadata."""

    dtype: str  # as numpy spells it
    shape: tuple[int, ...]  # of one entry
    axes: tuple[str, ...]  # a name for each
    shuffle: Shuffle  # blosc's filter before zstd: sorts bytes, bits, or nothing

    @property
    def row_bytes(self) -> int:
        """Bytes of one entry, unpacked."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize
