"""Numbers that are a function of a name and a shape: the same on every machine, so that fixtures need not contain them."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 values in [-1, 1) by SplitMix64 from a hash of the name: the same in every version."""
    seed = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + seed
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    values = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return torch.from_numpy(values.reshape(shape))
