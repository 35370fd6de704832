"""Stored crops: a view's pixels and label in the store itself, so that training needs no dataset and no full-size decode.

    replay      nothing is stored: a reader cuts the view out of its image again
    jpeg[:Q]    the crop as JPEG of quality Q, 95 by default, colours at full resolution
    webp        the crop as lossless WebP, two to four times larger and slower to decode

The teacher is given the decoded crop, so that student and teacher see the same pixels to the bit, whatever the format
lost. Only the part that is image is encoded; the padding around it is known from the view. An array's rows have one
length: the file, padded with zeros, which cost nothing behind zstd.
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
CROPS = "crops"  # the arrays of a store that keeps them
LABELS = "labels"

_DEFAULT_QUALITY = 95
_HEADER_BYTES = 4  # the length of the file
_WEBP_LOSSLESS = 0x2F  # the signature of its bit stream
_SLACK_BYTES = 4096  # by which a file may be longer than the pixels themselves


def canonical_inputs(request: str) -> str:
    """`request` in the one form that goes into a store's key: "replay", "jpeg:95" or "webp"; "stored" is jpeg.

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
            f"unknown inputs {request!r}", hint="replay, or for stored crops jpeg, jpeg:QUALITY or webp"
        )
    return name


def crop_packings(crop_size: tuple[int, int]) -> dict[str, Packing]:
    """How crops and labels of that height and width are stored, by array."""
    longest = _HEADER_BYTES + 3 * crop_size[0] * crop_size[1] + _SLACK_BYTES
    return {
        CROPS: Packing(dtype="uint8", shape=(longest,), axes=("byte",), shuffle="noshuffle"),
        LABELS: Packing(dtype="uint8", shape=crop_size, axes=("y", "x"), shuffle="noshuffle"),
    }


def encode_crop(inputs: str, crop: Crop) -> bytes:
    """The file of a crop's image part, in the format of `inputs`."""
    name, _, argument = inputs.partition(":")
    file = io.BytesIO()
    pixels = Image.fromarray(np.ascontiguousarray(crop.image[: crop.height, : crop.width]))
    pixels.save(file, **_ENCODERS[name](argument))
    return file.getvalue()


def with_decoded(crop: Crop, file: bytes) -> Crop:
    """The crop with the pixels that its file decodes to: those that the teacher sees."""
    image = np.zeros_like(crop.image)
    image[: crop.height, : crop.width] = _decode(file, (crop.height, crop.width), "a crop just encoded")
    return replace(crop, image=image)


def pack_file(file: bytes, longest: int) -> NDArray[np.uint8]:
    """The row that holds a file, (longest,) uint8."""
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
    """The crop in a row. Raises StoreDamagedError, naming `where`, for a row that holds none of that size."""
    length = int.from_bytes(row[:_HEADER_BYTES].tobytes(), "little")
    height, width = valid_size
    if length > len(row) - _HEADER_BYTES or height > label.shape[0] or width > label.shape[1]:
        raise StoreDamagedError(f"{where}: a file of {length} bytes for {height}x{width} pixels cannot be")
    image = np.zeros((*label.shape, 3), np.uint8)
    file = row[_HEADER_BYTES : _HEADER_BYTES + length].tobytes()
    image[:height, :width] = _decode(file, valid_size, where)
    return Crop(image, label, height, width)


def _decode(file: bytes, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """The pixels of a file, (height, width, 3), whose size is checked before anything is decoded."""
    # Pillow makes room for a WebP's pixels before it tells their size.
    if file[:4] == b"RIFF" and _webp_size(file) != size:
        raise StoreDamagedError(f"{where} is no lossless WebP of {size[0]}x{size[1]}")
    try:
        with Image.open(io.BytesIO(file), formats=("JPEG", "WEBP")) as opened:
            if (opened.height, opened.width) != size or opened.mode != "RGB":
                found = f"{opened.height}x{opened.width} {opened.mode}"
                raise StoreDamagedError(f"{where} is {found}, not {size[0]}x{size[1]} RGB")
            return np.asarray(opened)
    except (Image.DecompressionBombError, *DECODER_ERRORS) as error:
        raise StoreDamagedError(f"{where} cannot be decoded: {error}") from None


def _webp_size(file: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a plain lossless WebP; None for any other."""
    if file[8:16] != b"WEBPVP8L" or len(file) < 25 or file[20] != _WEBP_LOSSLESS:
        return None
    bits = int.from_bytes(file[21:25], "little")
    return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1


_ENCODERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "jpeg": lambda quality: {"format": "JPEG", "quality": int(quality), "subsampling": 0},
    "webp": lambda _: {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
}
