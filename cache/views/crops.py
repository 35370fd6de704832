"""Stored crops: a view's pixels and label in the store itself, so that training does not need the dataset.

    replay      stores nothing: a reader cuts the view out of its image again
    jpeg[:Q]    the crop as JPEG of quality Q (default 95), colours at full resolution
    webp        the crop as lossless WebP, two to four times larger and slower to decode

The teacher sees the decoded crop, so student and teacher see exactly the same pixels, whatever the format loses. Only
the part that is image is encoded; the padding follows from the view. All rows of an array have the same length: the
file, padded with zeros, which zstd compresses to almost nothing.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcache.cache.codecs.packing import Packing
from kdcache.cache.errors import StoreDamagedError, UsageError
from kdcache.cache.images.files import DECODER_ERRORS
from kdcache.cache.views.replay import Crop

REPLAY = "replay"
CROPS = "crops"  # arrays of a store with stored crops
LABELS = "labels"

_DEFAULT_QUALITY = 95
_HEADER_BYTES = 4  # the length of the file, little-endian
_WEBP_LOSSLESS = 0x2F  # first byte of a lossless bit stream
_SLACK_BYTES = 4096  # headers can make a file longer than the raw pixels, by at most this


def canonical_inputs(request: str) -> str:
    """`request` in the one form that becomes part of a store's key: "replay", "jpeg:95" or "webp"; "stored" is jpeg.

    Raises:
        UsageError: an unknown format or quality.
    """
    name, colon, argument = request.partition(":")
    if name in ("jpeg", "stored"):
        quality = argument if colon else str(_DEFAULT_QUALITY)
        if not quality.isdecimal() or not 1 <= int(quality) <= 100 or (colon and name == "stored"):
            raise UsageError(f"inputs {request!r}: the quality must be from 1 to 100", hint="jpeg or jpeg:95")
        return f"jpeg:{int(quality)}"
    if name not in (REPLAY, *_ENCODERS) or colon:
        raise UsageError(
            f"unknown inputs {request!r}", hint="replay, or to store crops: jpeg, jpeg:QUALITY or webp"
        )
    return name


def crop_packings(crop_size: tuple[int, int]) -> dict[str, Packing]:
    """How crops and labels of this size (height, width) are stored, by array."""
    longest = _HEADER_BYTES + 3 * crop_size[0] * crop_size[1] + _SLACK_BYTES
    return {
        CROPS: Packing(dtype="uint8", shape=(longest,), axes=("byte",), shuffle="noshuffle"),
        LABELS: Packing(dtype="uint8", shape=crop_size, axes=("y", "x"), shuffle="noshuffle"),
    }


def encode_crop(inputs: str, crop: Crop) -> bytes:
    """The file that contains a crop's image part, in the format of `inputs`."""
    name, _, argument = inputs.partition(":")
    file = io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(crop.image[: crop.height, : crop.width]))
    pixels.save(file, **_ENCODERS[name](argument))
    return file.getvalue()


def with_decoded(crop: Crop, file: bytes) -> Crop:
    """The crop with the pixels that its file decodes to. These are what the teacher sees."""
    image = np.zeros_like(crop.image)
    image[: crop.height, : crop.width] = _decode(file, (crop.height, crop.width), "a crop just encoded")
    return replace(crop, image=image)


def pack_file(file: bytes, longest: int) -> NDArray[np.uint8]:
    """The row that contains a file, (longest,) uint8."""
    row = np.zeros(longest, np.uint8)
    row[:_HEADER_BYTES] = np.frombuffer(len(file).to_bytes(_HEADER_BYTES, "little"), np.uint8)
    row[_HEADER_BYTES : _HEADER_BYTES + len(file)] = np.frombuffer(file, np.uint8)
    return row


def unpack_crop(
    row: NDArray[np.uint8],  # (longest,), see pack_file
    label: NDArray[np.uint8],  # (H, W)
    valid_size: tuple[int, int],  # height and width of the part that is image
    where: str,
) -> Crop:
    """The crop in a row. Raises StoreDamagedError, which names `where`, if its size is another."""
    length = int.from_bytes(row[:_HEADER_BYTES].tobytes(), "little")
    height, width = valid_size
    if length > len(row) - _HEADER_BYTES or height > label.shape[0] or width > label.shape[1]:
        raise StoreDamagedError(
            f"{where}: impossible crop, a file of {length} bytes for {height}x{width} pixels"
        )
    image = np.zeros((*label.shape, 3), np.uint8)
    file = row[_HEADER_BYTES : _HEADER_BYTES + length].tobytes()
    image[:height, :width] = _decode(file, valid_size, where)
    return Crop(image, label, height, width)


def _decode(file: bytes, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """The pixels of a file, (height, width, 3) uint8. The size is checked before anything is decoded."""
    # For WebP Pillow allocates the pixels before it reports their size, so the header is read here first.
    if file[:4] == b"RIFF" and _webp_size(file) != size:
        raise StoreDamagedError(f"{where} is not a lossless WebP of {size[0]}x{size[1]}")
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "WEBP")) as opened:
            if (opened.height, opened.width) != size or opened.mode != "RGB":
                found = f"{opened.height}x{opened.width} {opened.mode}"
                raise StoreDamagedError(f"{where} is {found}, not {size[0]}x{size[1]} RGB")
            return np.asarray(opened)
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise StoreDamagedError(f"{where} does not decode: {error}") from None


def _webp_size(file: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a simple lossless WebP; None for any other file."""
    if file[8:16] != b"WEBPVP8L" or len(file) < 25 or file[20] != _WEBP_LOSSLESS:
        return None
    bits = int.from_bytes(file[21:25], "little")
    return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1


_ENCODERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    # No chroma subsampling: it would blur the colours of thin things, poles and signs.
    "jpeg": lambda quality: {"format": "JPEG", "quality": int(quality), "subsampling": 0},
    # Lossless WebP takes quality and method as effort; the lowest is the fastest and enough.
    "webp": lambda _: {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}
