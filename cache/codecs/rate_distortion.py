"""Size against error: every codec with several steps, on one sample of a teacher's outputs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdcache.cache.codecs.choose import CalibrationSample, measure
from kdcache.cache.codecs.codec import Codec
from kdcache.cache.codecs.range_coder import RangeDct
from kdcache.cache.codecs.scalar import Delta, Fp16, Uniform
from kdcache.cache.codecs.transform import DctStatistics, Pca

_FINEST, _COARSEST = -9, 0  # steps, as powers of two of the standard deviation
_CHANNELS_PER_COMPONENT = (2, 4, 8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class RatePoint:
    """A codec, and its size and loss on a sample."""

    codec: Codec
    fidelity: dict[str, Any]  # as choose.measure returns it

    @property
    def request(self) -> str:
        """The request that gives this codec, with its step."""
        summary = self.codec.summary()
        parts = {"fp16": (), "pca": ("components", "step")}.get(self.codec.name, ("step",))
        return ":".join([self.codec.name, *(f"{summary[part]:g}" for part in parts)])


def rate_curve(sample: CalibrationSample) -> Iterator[RatePoint]:
    """All codecs on a sample, one family after the other, from fine to coarse. Skips those that overflow on it."""
    for codec in _ladder(sample):
        if not any(bool(codec.encode(batch)[1].any()) for batch in sample.held_out):
            yield RatePoint(codec=codec, fidelity=measure(codec, sample))


def _ladder(sample: CalibrationSample) -> Iterator[Codec]:
    statistics = DctStatistics.of(sample.fitted)
    octave = math.floor(math.log2(statistics.deviation))
    steps = [2.0 ** (octave + power) for power in range(_FINEST, _COARSEST + 1)]
    yield Fp16()
    yield from (Uniform.fit(repr(step), sample.fitted) for step in steps)
    yield from (Delta.fit(repr(step), sample.fitted) for step in steps)
    channels = statistics.basis.channels
    for part in _CHANNELS_PER_COMPONENT:
        if channels >= 2 * part:
            yield Pca.fit(str(channels // part), sample.fitted)
    yield from (statistics.codec(step) for step in steps)
    yield from (RangeDct.of(statistics.codec(step), sample.fitted) for step in steps)
