"""The codecs by name.

    fp16                   half precision
    uniform[:STEP]         one step for all values
    delta[:STEP]           the same, then differences of neighbours before the lossless stage
    pca:K[:STEP]           K principal components of the channels, one step
    dct[:STEP[:K]]         principal components, an 8x8 DCT, one step
    dct-range[:STEP[:K]]   the same with a range coder: smaller, but other readers cannot decode it
    auto:MAX_KL[:METHODS]  the smallest that loses at most MAX_KL and that every Zarr reader opens, see choose.py

A request is part of a store's key. Encoding and decoding are done in torch, on the device where the data is. What is
stored are plain numbers under standard Zarr codecs.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdcache.cache.codecs.choose import CalibrationSample, choose_codec
from kdcache.cache.codecs.codec import FAULTS, Codec
from kdcache.cache.codecs.range_coder import RangeDct
from kdcache.cache.codecs.request import AUTO, Promise, canonical_request, split_request
from kdcache.cache.codecs.scalar import Delta, Fp16, Uniform
from kdcache.cache.codecs.transform import Dct, Pca
from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.documents import MALFORMED

__all__ = [
    "CODECS",
    "FAULTS",
    "Codec",
    "canonical_request",
    "codec_from_dict",
    "fit_codec",
    "resolve_codec",
]

CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Fp16, Uniform, Delta, Pca, Dct, RangeDct)}


def fit_codec(
    request: str,
    sample: Sequence[Tensor],  # each (N, C, h, w) float32
) -> Codec:
    """The codec that `request` names, fitted to a sample of the teacher's outputs. Does not accept `auto`."""
    name, argument = split_request(canonical_request(request))
    return CODECS[name].fit(argument, sample)


def resolve_codec(request: str, sample: CalibrationSample) -> Codec:
    """The codec for a request, `auto` included, fitted to a sample of the teacher's outputs.

    Raises:
        TeacherError: no codec loses as little as `auto` promises.
    """
    name, _, argument = request.partition(":")
    if name == AUTO:
        return choose_codec(Promise.parse(argument), sample)
    return fit_codec(request, sample.fitted)


def codec_from_dict(fields: dict[str, Any]) -> Codec:
    """The codec that a store's calibration describes. Raises StoreDamagedError for an unknown or malformed one."""
    try:
        return CODECS[fields["name"]].from_dict(fields)
    except MALFORMED as error:
        known = ", ".join(CODECS)
        raise StoreDamagedError(
            f"the calibration names an unusable codec: {repr(error)[:200]} (known: {known})",
            hint="a newer kdcache may know this codec; if yours is the newest, kdcache verify lists what is damaged",
        ) from None
