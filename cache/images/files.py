"""Image files as arrays: pixels as RGB, labels as the values in the file, and one clear error for any damage.

EXIF rotation is ignored: the masks of a dataset are drawn on the pixels as they are stored.
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

# What Pillow's decoders raise for damaged files; SyntaxError is a broken PNG chunk.
DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)
_GREY_STEPS = {
    "L;2": 85,
    "L;4": 17,
}  # Pillow stretches grey of 2 and 4 bits to 0..255; class ids must be undone


def read_image(path: Path) -> NDArray[np.uint8]:
    """The pixels, (H, W, 3) uint8 RGB. Grey is repeated in all channels, transparency is dropped.

    Raises:
        DataError: the file is unreadable or damaged, or has more than 8 bits per channel.
    """
    with _opened(path) as image:
        return np.array(_plain(image).convert("RGB"))


def read_label(path: Path) -> NDArray[np.uint8]:
    """The values of a file with one channel, (H, W) uint8. Of a palette file these are the indices.

    Raises:
        DataError: the file is unreadable or damaged, or has more than one channel or more than 8 bits.
    """
    with _opened(path) as image:
        if image.mode not in ("1", "L", "P"):
            raise DataError(
                f"{path} is not a label: it has {len(image.getbands())} channels (mode {image.mode}), "
                "but a label has one channel of class ids"
            )
        step = _GREY_STEPS.get(_raw_mode(image), 1)
        values = np.array(image, dtype=np.uint8)
    return values // np.uint8(step) if step > 1 else values


def read_size(path: Path) -> tuple[int, int]:
    """(H, W) from the header.

    Raises:
        DataError: the file is unreadable or not an image.
    """
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """The opened image. Errors become DataError: an OSError with a number is the system's, without one a decoder's."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF" or "16" in _raw_mode(image):
                raise DataError(
                    f"{path} has more than 8 bits per channel (mode {image.mode})",
                    hint="convert it to 8 bits",
                )
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large for an image: {error}") from None
    except DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        raise DataError(f"{path} is damaged or not an image: {error}") from None


def _plain(image: Image.Image) -> Image.Image:
    """The image in a form that converts to RGB. Converting a palette with transparency makes Pillow warn."""
    return image.convert("RGBA") if "transparency" in image.info else image


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """The decoder's name for the pixels in the file, such as "RGB;16B". The mode alone does not tell their bits."""
    for tile in image.tile:
        arguments = tile[3]
        first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
        if isinstance(first, str):
            return first
    return ""
