"""Replay: from a view to the pixels that the teacher saw, and the proof that they are the same pixels.

A store keeps one int32 row for each view: which image, the view's parameters, and a digest of the teacher's crop.
Replay is integer arithmetic, so equal decoded images give equal crops. Image decoders do differ between library
versions; the digest of the replayed crop detects that.
"""

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import StoreDamagedError, StoreMismatchError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.drawing import crop_label
from kdcache.cache.views.pixels import THUMBNAIL_SIDE, distort_colours, resize_image, thumbnail
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.view import View

_DIGEST_BYTES = 16
_THUMBNAIL_BYTES = THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3
_DIGEST_WORDS = (2 * _DIGEST_BYTES + _THUMBNAIL_BYTES) // 4
# Largest mean difference of thumbnails of one image. Decoders and resizers differ by less than 1, other images by much
# more.
_NEAR_LEVELS = 3

ENTRY_COLUMNS: tuple[str, ...] = (
    "image_index",
    "view_index",
    *View.ROW_FIELDS,
    *(f"image_digest_{i}" for i in range(_DIGEST_BYTES // 4)),
    *(f"label_digest_{i}" for i in range(_DIGEST_BYTES // 4)),
    *(f"thumbnail_{i}" for i in range(_THUMBNAIL_BYTES // 4)),
)


@dataclass(frozen=True, slots=True)
class Crop:
    """The pixels of a view, padded at the right and at the bottom to the policy's crop size."""

    image: NDArray[np.uint8]  # (h, w, 3) RGB, padding 0
    label: NDArray[np.uint8]  # (h, w) train ids, padding 255; all 255 if the image has no label
    height: int  # the valid region is [:height, :width]
    width: int


@dataclass(frozen=True, slots=True)
class CropDigest:
    """What identifies a crop."""

    image: bytes  # 16 bytes: BLAKE2b of the uint8 crop, before normalisation, and of its valid size
    label: bytes  # 16 bytes: the same of the label
    thumbnail: bytes  # 192 bytes: means over 8x8 boxes of the valid region, RGB

    def to_row(self) -> list[int]:
        """The digest as int32 words, little-endian."""
        words: list[int] = np.frombuffer(self.image + self.label + self.thumbnail, dtype="<i4").tolist()
        return words

    @classmethod
    def from_row(cls, row: list[int]) -> "CropDigest":
        """The inverse of to_row."""
        data = np.array(row, dtype="<i4").tobytes()
        assert len(data) == 4 * _DIGEST_WORDS
        return cls(data[:_DIGEST_BYTES], data[_DIGEST_BYTES : 2 * _DIGEST_BYTES], data[2 * _DIGEST_BYTES :])


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One row of a store's `views` array."""

    image_index: int
    view_index: int
    view: View
    digest: CropDigest


def replay(
    view: View,
    policy: ViewPolicy,
    image: NDArray[np.uint8],  # (H, W, 3) RGB
    label: NDArray[np.uint8] | None,  # (H, W) train ids
) -> Crop:
    """The crop of a view. The same image gives the same bytes in every process.

    Raises:
        StoreMismatchError: the image is smaller than the view's box, or the view is larger than the policy's crop.
    """
    crop_height, crop_width = policy.crop_height_px, policy.crop_width_px
    check_fit(view, (crop_height, crop_width), image.shape[:2])
    pixels = image[view.top : view.top + view.box_height, view.left : view.left + view.box_width]
    pixels = resize_image(pixels, view.height, view.width)
    if view.distorts_colours:
        pixels = distort_colours(
            pixels,
            brightness_levels=view.brightness_levels,
            contrast_milli=view.contrast_milli,
            saturation_milli=view.saturation_milli,
            hue_degrees=view.hue_degrees,
        )
    # Only the valid region is mirrored: the padding stays at the right and at the bottom, where the masks expect it.
    order = slice(None, None, -1 if view.flip else 1)
    crop_image = np.zeros((crop_height, crop_width, 3), np.uint8)
    crop_image[: view.height, : view.width] = pixels[:, order]
    crop_label_ids = np.full((crop_height, crop_width), IGNORE, np.uint8)
    if label is not None:
        crop_label_ids[: view.height, : view.width] = crop_label(view, label)[:, order]
    return Crop(crop_image, crop_label_ids, view.height, view.width)


def crop_digest(crop: Crop) -> CropDigest:
    """The digest of a crop; takes 3 ms at 512x1024."""
    # The sizes are hashed too, or a crop and a narrower one with the same bytes would be equal.
    valid_size = struct.pack("<4i", *crop.image.shape[:2], crop.height, crop.width)
    return CropDigest(
        image=_blake2b(valid_size, crop.image),
        label=_blake2b(valid_size, crop.label),
        thumbnail=thumbnail(crop.image[: crop.height, : crop.width]).tobytes(),
    )


def compare_digest(stored: CropDigest, found: CropDigest) -> str | None:
    """None for the same crop; otherwise why not: "another image", "another decoder or resize" or "another label".

    A few edited pixels are reported as another decoder: the thumbnail is coarse on purpose.
    """
    if stored.image != found.image:
        mine, theirs = (np.frombuffer(d.thumbnail, np.uint8).astype(np.int64) for d in (stored, found))
        near = int(np.abs(mine - theirs).sum()) <= _NEAR_LEVELS * _THUMBNAIL_BYTES
        return "another decoder or resize" if near else "another image"
    return None if stored.label == found.label else "another label"


def entry_row(image_index: int, view_index: int, view: View, digest: CropDigest) -> NDArray[np.int32]:
    """The row that a store keeps for a view, (len(ENTRY_COLUMNS),) int32."""
    return np.array([image_index, view_index, *view.to_row(), *digest.to_row()], dtype=np.int32)


def parse_entry_row(
    row: NDArray[np.int32],  # (len(ENTRY_COLUMNS),)
) -> EntryRow:
    """The inverse of entry_row. Raises StoreDamagedError for values that no view can have."""
    words = row.tolist()
    if len(words) != len(ENTRY_COLUMNS) or min(words[:2]) < 0:
        raise StoreDamagedError(
            f"invalid row of views: {len(words)} columns, the first {words[:2]}",
            hint="kdcache verify STORE lists what is damaged",
        )
    try:
        view = View.from_row(words[2:-_DIGEST_WORDS])
    except ValueError as error:
        raise StoreDamagedError(
            f"invalid row of views: {error}", hint="kdcache verify STORE lists what is damaged"
        ) from None
    return EntryRow(words[0], words[1], view, CropDigest.from_row(words[-_DIGEST_WORDS:]))


def check_fit(view: View, crop_size: tuple[int, int], image_size: tuple[int, ...]) -> None:
    bottom, right = view.top + view.box_height, view.left + view.box_width
    if bottom > image_size[0] or right > image_size[1]:
        raise StoreMismatchError(
            f"the view needs an image of at least {bottom}x{right} pixels, "
            f"but this one has {image_size[0]}x{image_size[1]}",
            hint="this is not the image that the view was drawn for: check --dataset and --data-root",
        )
    if view.height > crop_size[0] or view.width > crop_size[1]:
        raise StoreMismatchError(
            f"the view has {view.height}x{view.width} pixels, but the crop only {crop_size[0]}x{crop_size[1]}"
        )


def _blake2b(header: bytes, pixels: NDArray[np.uint8]) -> bytes:
    digest = hashlib.blake2b(header, digest_size=_DIGEST_BYTES)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()
