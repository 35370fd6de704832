"""A basis of channels: the principal components of a store's calibration sample.

The channels of a target are strongly correlated: 19 logits vary in some 8 directions, 512 features in some 100. The
components are uncorrelated, so a codec does not store the same information twice. The basis is part of the calibration:
fitted once, kept as float32 bytes, and used by every builder and reader.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcache.cache.codecs.precision import true_float32

MAX_CHANNELS = 2**14

_LARGEST_MEAN = 2.0**96  # leaves a wide margin before float32 overflows at 2^128
_LARGEST_OF_A_VECTOR = 1.001  # a vector of length 1, with room for rounding


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelBasis:
    """Mean (C,) and orthonormal vectors (C, K), as little-endian float32 bytes: equal bases compare equal."""

    channels: int
    components: int
    mean: bytes
    vectors: bytes

    @classmethod
    def fit(
        cls,
        sample: Sequence[Tensor],  # each (N, C, h, w)
    ) -> "ChannelBasis":
        """All C components of a sample, in order of falling variance."""
        channels = sample[0].shape[1]
        total, products, cells = torch.zeros(channels).double(), torch.zeros(channels, channels).double(), 0
        for batch in sample:
            # On the CPU in float64: a covariance is a difference of large sums, and all devices must agree on it.
            flat = batch.detach().to("cpu", torch.float64).movedim(1, 0).flatten(1)  # (C, N h w)
            total += flat.sum(dim=1)
            products += flat @ flat.T
            cells += flat.shape[1]
        mean = total / cells
        vectors = torch.linalg.eigh(products / cells - torch.outer(mean, mean))[1].flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        # An eigenvector's sign is arbitrary. Fixing it makes equal samples give equal bytes.
        return cls.of(mean, vectors * largest.sign())

    @classmethod
    def of(
        cls,
        mean: Tensor,  # (C,)
        vectors: Tensor,  # (C, K), orthonormal
    ) -> "ChannelBasis":
        """The basis with these numbers, rounded to float32."""
        channels, components = vectors.shape
        return cls(channels=channels, components=components, mean=_to_bytes(mean), vectors=_to_bytes(vectors))

    def first(self, components: int) -> "ChannelBasis":
        """The same basis with only the first `components`."""
        mean, vectors = self._tensors(torch.device("cpu"))
        return ChannelBasis.of(mean, vectors[:, :components])

    @true_float32()
    def analyse(
        self,
        target: Tensor,  # (N, C, h, w)
    ) -> Tensor:
        """The components of a target, (N, K, h, w)."""
        mean, vectors = self._tensors(target.device)
        # The mean is subtracted after the product: K numbers per cell instead of C.
        components = vectors.T @ target.flatten(2) - (vectors.T @ mean)[:, None]
        return components.reshape(len(target), -1, *target.shape[2:])

    @true_float32()
    def synthesise(
        self,
        components: Tensor,  # (N, K, h, w)
    ) -> Tensor:
        """The target with these components, (N, C, h, w)."""
        mean, vectors = self._tensors(components.device)
        target = vectors @ components.flatten(2) + mean[:, None]
        return target.reshape(len(components), -1, *components.shape[2:])

    def largest_error(self, component_error: float) -> Tensor:
        """The largest error of each channel, (C,), if every component has an error of at most `component_error`."""
        return self._tensors(torch.device("cpu"))[1].abs().sum(dim=1) * component_error

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, bytes in base64."""
        return {
            "channels": self.channels,
            "components": self.components,
            "mean": base64.b64encode(self.mean).decode(),
            "vectors": base64.b64encode(self.vectors).decode(),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ChannelBasis":
        """The inverse of to_dict. Raises KeyError, TypeError or ValueError for invalid values."""
        channels, components = int(fields["channels"]), int(fields["components"])
        mean, vectors = (base64.b64decode(fields[name], validate=True) for name in ("mean", "vectors"))
        if not 1 <= components <= channels <= MAX_CHANNELS:
            raise ValueError(f"a basis of {components} components of {channels} channels")
        if len(mean) != 4 * channels or len(vectors) != 4 * channels * components:
            raise ValueError(f"a basis of {len(vectors)} bytes for {channels} x {components} numbers")
        basis = cls(channels=channels, components=components, mean=mean, vectors=vectors)
        mean_size, vector_size = (float(t.abs().max()) for t in basis._tensors(torch.device("cpu")))
        if not (mean_size <= _LARGEST_MEAN and vector_size <= _LARGEST_OF_A_VECTOR):  # false for NaN too
            raise ValueError(f"a basis with vectors up to {vector_size:g} and a mean up to {mean_size:g}")
        return basis

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _tensors(self, device)


# One copy to the device for each basis: a copy for every batch would make the device wait
@lru_cache(maxsize=16)
def _tensors(basis: ChannelBasis, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean (C,) and vectors (C, K) on a device."""
    mean, vectors = (
        torch.from_numpy(np.frombuffer(data, dtype="<f4").copy()) for data in (basis.mean, basis.vectors)
    )
    return mean.to(device), vectors.reshape(basis.channels, basis.components).to(device)


def _to_bytes(values: Tensor) -> bytes:
    return values.detach().cpu().numpy().astype("<f4").tobytes()
