"""The automatic codec: the smallest one that keeps a promise about its loss.

`auto:MAX_KL[:METHODS]` promises that decoded logits differ from the exact ones by at most MAX_KL, measured with the
divergence of every method named, on crops that no codec was fitted to ("logit" is the KL divergence at T = 1). For
features the promise limits what the teacher's own classifier makes of the decoded ones, and their relative error.

Each family of codecs competes with its largest step that keeps the promise. The transform codec is nearly always the
smallest. It is not for maps of a few cells, for noise, or for features that are mostly zero and hardly correlated.
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

_ERROR_PER_KL = 20.0  # for features: the relative error that is allowed for a KL of 1
_FINEST = 2.0**-10  # the smallest step that is tried, as a fraction of the standard deviation
_RATIO = 2.0**0.125  # between neighbouring steps; their eighths make every eighth step a power of two
_STEPS = 112  # 14 octaves, so up to 16 standard deviations


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSample:
    """The values of a target on some crops, in two parts: one to fit codecs to, one to measure their loss on."""

    target: str
    fitted: Sequence[Tensor]  # each (N, C, h, w) float32
    held_out: Sequence[
        Tensor
    ]  # each (N, C, h, w) float32: the teacher's outputs in the precision of the build
    # The float32 teacher's outputs on the held-out crops. The same as `held_out` if the build runs in float32.
    exact: Sequence[Tensor]
    weights: Sequence[Tensor]  # (N, h, w) float: the part of each held-out cell that is image and not padding
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
    """The smallest codec that keeps the promise on the held-out crops.

    Raises:
        TeacherError: not even fp16 does, or the teacher's own precision loses more than the promise allows.
    """
    kept = list(candidates(promise, sample))
    if not kept:
        found = measure(Fp16(), sample)
        raise TeacherError(
            f"{sample.target}: no codec keeps {promise}; fp16 comes to a KL of {found['kl']}",
            hint="allow more with --max-kl, or compute more exactly with --precision float32",
        )
    return min(kept, key=lambda codec: stored_bytes(codec, sample.held_out))


def candidates(promise: Promise, sample: CalibrationSample) -> Iterator[Codec]:
    """From each family of codecs the one with the largest step that keeps the promise, if there is one."""
    statistics = DctStatistics.of(sample.fitted)
    steps = _steps(statistics.deviation)
    # The scalar codecs take powers of two only: then dividing by the step is exact in float32.
    exact_steps = [step for step in steps if math.frexp(step)[0] == 0.5]
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
    """What a codec loses on the held-out crops, see fidelity.py, and its `bytes_per_value` on all crops.

    All crops, because sizes of single crops vary by a sixth: eight of them predict a store only to within a tenth.
    """
    fidelity = fidelity_of(sample.target, sample.classifier)
    for exact, held_out, weights in zip(sample.exact, sample.held_out, sample.weights, strict=True):
        fidelity.add(exact, codec.decode(codec.encode(held_out)[0]), weights)
    batches = [*sample.fitted, *sample.held_out]
    values = sum(batch.numel() for batch in batches)
    return {**fidelity.result(), "bytes_per_value": stored_bytes(codec, batches) / values}


def stored_bytes(codec: Codec, batches: Sequence[Tensor]) -> int:
    """Bytes that these entries take in a store, with the index of their shard."""
    total = 0
    for batch in batches:
        rows = codec.pack(codec.encode(batch)[0].cpu().numpy())
        packing = codec.packing((batch.shape[1], batch.shape[2], batch.shape[3]))
        total += len(ArrayLayout.of_packing("sample", packing, rows=len(rows)).encode(rows))
    return total


def _steps(deviation: float) -> list[float]:
    """Steps from fine to coarse, in proportion to the deviation; every eighth is a power of two."""
    finest = 2.0 ** math.floor(math.log2(deviation * _FINEST))
    return [_rounded(finest * _RATIO**n) for n in range(_STEPS)]


def _rounded(step: float) -> float:
    """The step with three digits, so that people can read it; powers of two stay exact."""
    return step if math.frexp(step)[0] == 0.5 else float(f"{step:.3g}")


def _coarsest(
    make: Callable[[float], Codec], steps: Sequence[float], promise: Promise, sample: CalibrationSample
) -> Codec | None:
    """The codec of the largest of the rising `steps` that keeps the promise; by bisection."""
    low, high, found = -1, len(steps), None  # steps[low] keeps the promise, steps[high] does not
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
    for exact, held_out, weights in zip(sample.exact, sample.held_out, sample.weights, strict=True):
        codes, faults = codec.encode(held_out)
        if torch.any(faults):
            return False
        fidelity.add(exact, codec.decode(codes), weights)
    return is_kept(promise, sample.target, fidelity.result())
