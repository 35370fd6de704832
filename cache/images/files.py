"""Image files as arrays: pixels as RGB, labels as the values that stand in the file, or one clear error.

No EXIF rotation: the masks of a dataset are drawn on the pixels as they are stored.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from kdcache.cache.errors import DataError

# What Pillow's decoders raise at damaged files; SyntaxError is its word for a broken PNG chunk.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # grey of 2 and 4 bits comes stretched to 0..255


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB; grey is repeated, transparency dropped.

    Raises:
        DataError: the file cannot be read or decoded, or has more than 8 bits a channel.
    """
    with _opened(path) as image:
        return np.array(_plain(image).convert("RGB"))


def read_label(path: Path) -> NDArray[np.uint8]:
    """(H, W) uint8, the values of the one channel; of a palette file its indices.

    Raises:
        DataError: the file cannot be read or decoded, or is not one channel of at most 8 bits.
    """
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P"):
            raise DataError(
                f"{path} is no label: {len(image.getbands())} channels (mode {image.mode}), "
                "not one of class ids"
            )
        step = _GREY_STEPS.get(_raw_mode(image), 1)
        values = np.array(image, dtype=np.uint8)
    return values // np.uint8(step) if step > 1 else values


def read_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header.

    Raises:
        DataError: the file cannot be read or is not an image.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The image, errors as DataError; an OSError with a number is the system's, one without a decoder's."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF" or "16" in _raw_mode(image):
                raise DataError(f"{path} has more than 8 bits a channel (mode {image.mode}); convert it to 8")
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large an image: {error}") from None
    except DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        raise DataError(f"{path} is damaged or not an image: {error}") from None


def _plain(image: Image.Image) -> Image.Image:
    """An image with a transparent colour in a form that converts to RGB: from a palette Pillow warns."""
    return image.convert("RGBA") if "transparency" in image.info else image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """The decoder's name of the pixels in the file, "RGB;16B"; the mode does not tell their bits."""
    for tile in image.tile:
        arguments = tile[3]
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if isinstance(first, str):
            return first
    return ""
