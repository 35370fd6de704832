"""The automatic codec: the smallest one that keeps a promise about what it loses.

`auto:MAX_KL[:METHODS]` promises, on crops that nothing was fitted to, that a target's decoded logits lie within
MAX_KL of the exact ones, by the divergence of every method named ("logit" is the KL divergence at T = 1). For
features the promise is about the teacher's own classifier on the decoded ones, and about their relative error.

Each candidate takes its largest step that keeps the promise. The transform codec is nearly always the smallest, but not
for maps of a few cells, for targets that are noise, or for features that are mostly zero and have little in common.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdcache.cache.codecs.codec import Codec
from kdcache.cache.codecs.fidelity import LOGIT_TARGETS, Classifier, fidelity_of
from kdcache.cache.codecs.request import Promise
from kdcache.cache.codecs.scalar import Delta, Fp16, Uniform
from kdcache.cache.codecs.shards import ArrayLayout
from kdcache.cache.codecs.transform import DctStatistics
from kdcache.cache.errors import TeacherError

_ERROR_PER_KL = 20.0  # features: relative error allowed for a KL of 1
_FINEST = 2.0**-10  # steps are searched from this part of the deviation
_RATIO = 2.0**0.125  # between the steps that are tried
_STEPS = 112  # up to sixteen deviations


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSample:
    """A target's exact values on some crops, cut in two: codecs are fitted to one part and judged on the other."""

    target: str
    fitted: Sequence[Tensor]  # each (N, C, h, w) float32
    judged: Sequence[Tensor]  # what the store would hold, were it exact
    # The float32 teacher's word on the judged crops; `judged` itself for such a teacher.
    exact: Sequence[Tensor]
    weights: Sequence[Tensor]  # (N, h, w) the part of every cell of the judged crops that is not padding
    classifier: Classifier | None = None


def is_kept(promise: Promise, target: str, fidelity: Mapping[str, Any]) -> bool:
    """Whether a measured fidelity is as good as promised."""
    if target in LOGIT_TARGETS:
        return all(fidelity["divergence"][name] <= promise.max_kl for name in promise.methods)
    kl = fidelity["kl"]
    return fidelity["relative_error"] <= _ERROR_PER_KL * promise.max_kl and (
        kl is None or kl <= promise.max_kl
    )


def choose_codec(promise: Promise, sample: CalibrationSample) -> Codec:
    """The smallest codec that keeps the promise on the judged part of a sample.

    Raises:
        TeacherError: not even fp16 does, or the teacher's own precision breaks the promise.
    """
    kept = list(candidates(promise, sample))
    if not kept:
        found = measure(Fp16(), sample)
        raise TeacherError(
            f"{sample.target}: no codec keeps {promise}; fp16 comes to a KL of {found['kl']}",
            hint="a larger --max-kl, or --precision float32",
        )
    return min(kept, key=lambda codec: stored_bytes(codec, sample.judged))


def candidates(promise: Promise, sample: CalibrationSample) -> Iterator[Codec]:
    """Of every family of codecs the one of the largest step that keeps the promise; none of those that cannot."""
    statistics = DctStatistics.of(sample.fitted)
    steps = _steps(statistics.deviation)
    exact_steps = [step for step in steps if math.frexp(step)[0] == 0.5]  # powers of two
    families: list[tuple[Callable[[float], Codec], list[float]]] = [
        (statistics.codec, steps),
        (lambda step: Delta.fit(repr(step), sample.fitted), exact_steps),
        (lambda step: Uniform.fit(repr(step), sample.fitted), exact_steps),
        (lambda step: Fp16(), [0.0]),
    ]
    for make, family_steps in families:
        if codec := _coarsest(make, family_steps, promise, sample):
            yield codec


def measure(codec: Codec, sample: CalibrationSample) -> dict[str, Any]:
    """What a codec loses on the judged part of a sample, see fidelity.py, and its `bytes_per_value` on all of it.

    Sizes of single crops vary by a sixth, so that eight would foretell a store's only to within a tenth.
    """
    fidelity = fidelity_of(sample.target, sample.classifier)
    for exact, judged, weights in zip(sample.exact, sample.judged, sample.weights, strict=True):
        fidelity.add(exact, codec.decode(codec.encode(judged)[0]), weights)
    batches = [*sample.fitted, *sample.judged]
    values = sum(batch.numel() for batch in batches)
    return {**fidelity.result(), "bytes_per_value": stored_bytes(codec, batches) / values}


def stored_bytes(codec: Codec, batches: Sequence[Tensor]) -> int:
    """Bytes of these entries in a store."""
    total = 0
    for batch in batches:
        rows = codec.pack(codec.encode(batch)[0].cpu().numpy())
        packing = codec.packing((batch.shape[1], batch.shape[2], batch.shape[3]))
        total += len(ArrayLayout.of_packing("sample", packing, rows=len(rows)).encode(rows))
    return total


def _steps(deviation: float) -> list[float]:
    """Steps from fine to coarse, about a fixed part of the deviation; every eighth is a power of two."""
    finest = 2.0 ** math.floor(math.log2(deviation * _FINEST))
    return [_rounded(finest * _RATIO**n) for n in range(_STEPS)]


def _rounded(step: float) -> float:
    """A step of few digits, so that requests and reports can be read; powers of two stay as they are."""
    return step if math.frexp(step)[0] == 0.5 else float(f"{step:.3g}")


def _coarsest(
    make: Callable[[float], Codec], steps: Sequence[float], promise: Promise, sample: CalibrationSample
) -> Codec | None:
    """The codec of the largest of `steps`, which rise, that keeps the promise; by bisection."""
    low, high, found = -1, len(steps), None  # low keeps it, high does not
    while high - low > 1:
        middle = (low + high) // 2
        codec = make(steps[middle])
        if _keeps(codec, promise, sample):
            low, found = middle, codec
        else:
            high = middle
    return found


def _keeps(codec: Codec, promise: Promise, sample: CalibrationSample) -> bool:
    fidelity = fidelity_of(sample.target, sample.classifier)
    for exact, judged, weights in zip(sample.exact, sample.judged, sample.weights, strict=True):
        codes, faults = codec.encode(judged)
        if torch.any(faults):
            return False
        fidelity.add(exact, codec.decode(codes), weights)
    return is_kept(promise, sample.target, fidelity.result())
