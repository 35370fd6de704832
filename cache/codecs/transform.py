"""Transform codecs: channels become the store's principal components, space an 8x8 DCT, with one step for everything.

An orthonormal transform preserves squared errors, so one step for all coefficients gives the fewest bits for a given
error. Codes are ordered by plane, which is one coefficient of one component for all blocks; planes are ordered by
falling activity in the calibration sample. After a bit shuffle, zstd finds long runs of similar statistics and comes
within about 15 % of the entropy of the planes.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.codecs.basis import ChannelBasis
from kdcache.cache.codecs.codec import Codec, Shape, find_faults, require_step, unzigzag, zigzag
from kdcache.cache.codecs.packing import Packing
from kdcache.cache.codecs.precision import true_float32
from kdcache.cache.codecs.request import parse_arguments
from kdcache.cache.codecs.scalar import INT16_MAX, Uniform, channel_statistics, fitted_step

BLOCK = 8  # cells a side
PLANES = BLOCK * BLOCK  # coefficients of a block

_PCA_STEPS_PER_DEVIATION = 32
# Coarser than for pca: most coefficients are near 0 and lose less than half a step
_DCT_STEPS_PER_DEVIATION = 8
_ROUNDING = 2.0**-17  # relative error of float32 sums over thousands of terms


@dataclass(frozen=True, kw_only=True, slots=True)
class Pca(Codec):
    """The first K principal components of the channels, each number quantised by itself: `pca:K` or `pca:K:STEP`."""

    name: ClassVar[str] = "pca"

    basis: ChannelBasis
    scalar: Uniform  # of the components

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> Self:
        components, step = parse_arguments(cls.name, argument, "")
        basis = ChannelBasis.fit(sample).first(components or 1)
        analysed = [basis.analyse(batch.to("cpu")) for batch in sample]
        if step is None:
            step = fitted_step(channel_statistics(analysed)[1], _PCA_STEPS_PER_DEVIATION)
        return cls(basis=basis, scalar=Uniform.fit(repr(step), analysed))

    def fits(self, shape: Shape) -> bool:
        return self.basis.channels == shape[0]

    def packing(self, shape: Shape) -> Packing:
        inner = self.scalar.packing((self.basis.components, *shape[1:]))
        return Packing(dtype=inner.dtype, shape=inner.shape, axes=("component", "y", "x"), shuffle="shuffle")

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        return self.scalar.encode(self.basis.analyse(target))

    def decode(self, codes: Tensor) -> Tensor:
        return self.basis.synthesise(self.scalar.decode(codes))

    def error_bound(self, target: Tensor) -> Tensor:
        return truncation_error(self.basis, target) + self.basis.largest_error(self.scalar.step / 2)[
            :, None, None
        ].to(target.device)

    def to_dict(self) -> dict[str, Any]:
        return {**self.scalar.to_dict(), "name": self.name, "basis": self.basis.to_dict()}

    def summary(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.scalar.step, "components": self.basis.components}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        codec = cls(basis=ChannelBasis.from_dict(fields["basis"]), scalar=Uniform.from_dict(fields))
        if len(codec.scalar.offsets) != codec.basis.components:
            raise ValueError(f"pca codec with {len(codec.scalar.offsets)} offsets")
        return codec


@dataclass(frozen=True, kw_only=True, slots=True)
class Dct(Codec):
    """Principal components, an orthonormal 8x8 DCT, and one step: `dct`, `dct:STEP`, `dct:STEP:K`.

    Maps are padded to whole blocks by repeating their last row and column. Without K, components are dropped if nearly
    all of their coefficients would become zero.
    """

    name: ClassVar[str] = "dct"

    basis: ChannelBasis
    step: float
    size: tuple[int, int]  # (h, w) of the map
    order: bytes  # uint32 for each plane: which coefficient it contains, component * 64 + row * 8 + column

    @classmethod
    def fit(cls, argument: str | None, sample: Sequence[Tensor]) -> "Dct":
        first, _, second = (argument or "").partition(":")
        statistics = DctStatistics.of(sample)
        step = float(first) if first else fitted_step(statistics.deviation, _DCT_STEPS_PER_DEVIATION)
        return statistics.codec(step, int(second) if second else None)

    def fits(self, shape: Shape) -> bool:
        return (self.basis.channels, *self.size) == shape

    def packing(self, shape: Shape) -> Packing:
        planes = (self.basis.components * PLANES, math.prod(_blocks(shape[1:])))
        return Packing(dtype="int16", shape=planes, axes=("plane", "block"), shuffle="bitshuffle")

    def encode(self, target: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (self._coefficients(target) / self.step).round_()
        faults = find_faults(target, inside=scaled.abs() <= INT16_MAX)
        codes = scaled.clamp_(-INT16_MAX, INT16_MAX).nan_to_num_(0.0).to(torch.int16)
        return zigzag(codes), faults

    def decode(self, codes: Tensor) -> Tensor:
        planes = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
        planes[:, self._order(codes.device)] = unzigzag(codes).to(torch.float32) * self.step
        blocks = planes.reshape(len(codes), -1, BLOCK, BLOCK, *_blocks(self.size))
        dct = dct_matrix(codes.device)
        # The basis comes last: so the inverse DCT runs on K components, not on the more numerous channels.
        with true_float32():
            maps = torch.einsum("iy,jx,nkijab->nkaybx", dct, dct, blocks).flatten(4, 5).flatten(2, 3)
        return self.basis.synthesise(maps[:, :, : self.size[0], : self.size[1]])

    def error_bound(self, target: Tensor) -> Tensor:
        dct = dct_matrix(torch.device("cpu"))
        gain = float(dct.abs().sum(dim=0).max()) ** 2  # a cell is a sum over the 64 coefficients of its block
        quantisation = self.basis.largest_error(self.step / 2 * gain)[:, None, None].to(target.device)
        return truncation_error(self.basis, target) + quantisation

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "step": self.step,
            "size": list(self.size),
            "order": base64.b64encode(self.order).decode(),
            "basis": self.basis.to_dict(),
        }

    def summary(self) -> dict[str, Any]:
        return {"name": self.name, "step": self.step, "components": self.basis.components}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        basis, step = ChannelBasis.from_dict(fields["basis"]), float(fields["step"])
        height, width = (int(side) for side in fields["size"])
        order = base64.b64decode(fields["order"], validate=True)
        planes = sorted(np.frombuffer(order, dtype="<u4").tolist())
        if min(height, width) < 1:
            raise ValueError(f"{cls.name} codec for maps of {height}x{width}")
        if planes != list(range(basis.components * PLANES)):
            raise ValueError(f"{cls.name} codec whose order of planes is not a permutation")
        return cls(basis=basis, step=require_step(cls.name, step), size=(height, width), order=order)

    def _coefficients(self, target: Tensor) -> Tensor:
        """The coefficients (N, K * 64, blocks) float32, in the order of the planes."""
        return _transform(self.basis.analyse(target)).flatten(1, 3)[:, self._order(target.device)].flatten(2)

    def _order(self, device: torch.device) -> Tensor:
        return _indices(self.order, device)


@dataclass(frozen=True, kw_only=True, slots=True)
class DctStatistics:
    """Statistics of a target's sample, from which `dct` codecs of any step follow without another look at it."""

    basis: ChannelBasis  # all components
    activity: Tensor  # (C, 64) root mean square of every coefficient
    deviation: float  # standard deviation of all values around their channel's mean
    size: tuple[int, int]  # (h, w)

    @classmethod
    def of(
        cls,
        sample: Sequence[Tensor],  # each (N, C, h, w) float32
    ) -> "DctStatistics":
        basis = ChannelBasis.fit(sample)
        height, width = sample[0].shape[2:]
        return cls(
            basis=basis,
            activity=_activity(basis, sample),
            deviation=channel_statistics(sample)[1],
            size=(height, width),
        )

    def codec(self, step: float, components: int | None = None) -> Dct:
        """The codec with this step. Without a number of components it drops those that would become all zero."""
        if components is None:
            active = (self.activity.amax(dim=1) >= step / 2).nonzero().flatten().tolist()
            components = max([1, *(component + 1 for component in active)])
        basis = self.basis.first(components)
        # Stable: equal activities, as of zeros, must give one order on every machine, for it is stored.
        order = self.activity[: basis.components].flatten().argsort(descending=True, stable=True)
        return Dct(basis=basis, step=step, size=self.size, order=order.numpy().astype("<u4").tobytes())


def truncation_error(basis: ChannelBasis, target: Tensor) -> Tensor:
    """The error from dropped components and from float32 rounding, at each element of a target (N, C, h, w)."""
    exact = target.double()
    left_out = (basis.synthesise(basis.analyse(target)).double() - exact).abs()
    largest = exact.abs().amax(dim=(1, 2, 3), keepdim=True) + 1
    return (left_out + largest * _ROUNDING).float()


@lru_cache(maxsize=4)
def dct_matrix(device: torch.device) -> Tensor:
    """The orthonormal DCT-II of length 8, (frequency, position) float32."""
    k = torch.arange(BLOCK, dtype=torch.float64)[:, None]
    angles = (2 * torch.arange(BLOCK, dtype=torch.float64) + 1) * k * math.pi / (2 * BLOCK)
    matrix = angles.cos() * math.sqrt(2 / BLOCK)
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device)


def _blocks(size: Sequence[int]) -> tuple[int, int]:
    """Number of blocks down and across a map."""
    return -(-size[0] // BLOCK), -(-size[1] // BLOCK)


def _transform(
    maps: Tensor,  # (N, K, h, w)
) -> Tensor:
    """Coefficients, (N, K, 8, 8, blocks down, blocks across)."""
    down, across = _blocks(maps.shape[2:])
    padded = F.pad(
        maps, (0, across * BLOCK - maps.shape[3], 0, down * BLOCK - maps.shape[2]), mode="replicate"
    )
    blocks = padded.reshape(*maps.shape[:2], down, BLOCK, across, BLOCK)
    dct = dct_matrix(maps.device)
    with true_float32():
        return torch.einsum("iy,jx,nkaybx->nkijab", dct, dct, blocks)


def _activity(basis: ChannelBasis, sample: Sequence[Tensor]) -> Tensor:
    """Root mean square of every coefficient over a sample, (K, 64) float64."""
    squares, blocks = torch.zeros(basis.components, PLANES, dtype=torch.float64), 0
    for batch in sample:
        coefficients = _transform(basis.analyse(batch.detach().to("cpu"))).flatten(2, 3)
        squares += coefficients.double().square().sum(dim=(0, 3, 4))
        blocks += len(batch) * math.prod(coefficients.shape[3:])
    return (squares / blocks).sqrt()


@lru_cache(maxsize=16)
def _indices(order: bytes, device: torch.device) -> Tensor:
    return torch.from_numpy(np.frombuffer(order, dtype="<u4").astype(np.int64)).to(device)
