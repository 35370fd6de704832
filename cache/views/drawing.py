"""Drawing views: from a policy, a seed, an image id and a view index to the integers of a view.

The draws are counter-based: each parameter is a BLAKE2b hash of what it belongs to. So none depends on another, on the
order of the draws, or on a library's random stream.

The crop is cut from the source before it is resized, while mmsegmentation resizes the whole image first. That saves
resizing pixels that are thrown away.
"""

import hashlib
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import DataError
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.pixels import resize_label, rounded
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.view import View

# Raise the number with any change of what is drawn: it separates old and new views
_PERSON = b"kdcache.view.1"
_CAT_MAX_TRIES = 10  # as in mmsegmentation


def draw_view(
    policy: ViewPolicy,
    seed: int,
    image_id: str,
    view_index: int,
    size: tuple[int, int],  # (H, W) of the image
    label: NDArray[np.uint8] | None,  # (H, W) train ids; used only if cat_max_ratio < 1
) -> View:
    """View `view_index` of an image. The same arguments give the same view everywhere.

    Raises:
        DataError: the label differs in size from the image.
    """
    if label is not None and label.shape != size:
        raise DataError(
            f"image {image_id} is {size[0]}x{size[1]}, but its label is {label.shape[0]}x{label.shape[1]}"
        )
    draws = _Draws(seed, image_id, view_index)
    scale_milli = _draw_scale(policy, draws)
    scaled = _scaled_size(policy, size, scale_milli)
    view = View(
        scale_milli=scale_milli,
        **_draw_box(policy, size, scaled, draws, 0),
        flip=int(draws.below(1000, "flip") < _milli(policy.flip_probability)),
        **(_draw_colours(draws) if policy.photometric else {}),
    )
    fits = scaled[0] <= policy.crop_height_px and scaled[1] <= policy.crop_width_px
    # A crop of the whole image is the same in every try
    if label is None or policy.cat_max_ratio == 1 or fits:
        return view
    for attempt in range(1, _CAT_MAX_TRIES):
        if _is_varied(crop_label(view, label), policy):
            break
        # Only the box changes: hashes by name keep scale, flip and colours as they are.
        view = replace(view, **_draw_box(policy, size, scaled, draws, attempt))
    return view  # the last try is kept without a check, as in mmsegmentation


def crop_label(
    view: View,
    label: NDArray[np.uint8],  # (H, W)
) -> NDArray[np.uint8]:
    """The label of a view's valid region, (height, width) uint8, before the flip."""
    box = label[view.top : view.top + view.box_height, view.left : view.left + view.box_width]
    return resize_label(box, view.height, view.width)


class _Draws:
    """Random numbers with names. They do not depend on each other or on the order in which they are drawn."""

    def __init__(self, seed: int, image_id: str, view_index: int) -> None:
        self._prefix = f"{seed} {view_index} "
        self._suffix = f" {image_id}"

    def below(self, n: int, parameter: str, attempt: int = 0) -> int:
        """An integer in 0..n-1; its bias is below n / 2^64."""
        text = f"{self._prefix}{parameter} {attempt}{self._suffix}"
        digest = hashlib.blake2b(text.encode(), digest_size=8, person=_PERSON).digest()
        return int.from_bytes(digest, "little") * n >> 64

    def between(self, least: int, most: int, parameter: str) -> int:
        return least + self.below(most - least + 1, parameter)


def _draw_scale(policy: ViewPolicy, draws: _Draws) -> int:
    least, most, step = (_milli(v) for v in (policy.scale_min, policy.scale_max, policy.scale_step))
    step = max(step, 1)
    return least + step * draws.below((most - least) // step + 1, "scale")


def _scaled_size(policy: ViewPolicy, size: tuple[int, int], scale_milli: int) -> tuple[int, int]:
    """(H, W) after scaling, rounded like mmcv's imrescale."""
    numerator, denominator = scale_milli, 1000
    if policy.base_long_px:  # a fraction of integers, so that no float rounding depends on the machine
        long, short = max(size), min(size)
        if policy.base_long_px * short <= policy.base_short_px * long:
            numerator, denominator = numerator * policy.base_long_px, denominator * long
        else:
            numerator, denominator = numerator * policy.base_short_px, denominator * short
    height, width = (max(1, rounded(n * numerator, denominator)) for n in size)
    return height, width


def _draw_box(
    policy: ViewPolicy, size: tuple[int, int], scaled: tuple[int, int], draws: _Draws, attempt: int
) -> dict[str, int]:
    """A random crop window in the scaled image, converted to the nearest box of whole source pixels."""
    height, width = min(policy.crop_height_px, scaled[0]), min(policy.crop_width_px, scaled[1])
    y = draws.below(scaled[0] - height + 1, "top", attempt)
    x = draws.below(scaled[1] - width + 1, "left", attempt)
    top, bottom = _source_span(y, y + height, scaled[0], size[0])
    left, right = _source_span(x, x + width, scaled[1], size[1])
    return {
        "top": top,
        "left": left,
        "box_height": bottom - top,
        "box_width": right - left,
        "height": height,
        "width": width,
    }


def _source_span(start: int, stop: int, scaled: int, source: int) -> tuple[int, int]:
    first = min(rounded(start * source, scaled), source - 1)
    return first, max(first + 1, rounded(stop * source, scaled))


def _draw_colours(draws: _Draws) -> dict[str, int]:
    """Values from the ranges of mmsegmentation's PhotoMetricDistortion, each applied with probability 1/2."""
    ranges = {
        "brightness_levels": (-32, 32),
        "contrast_milli": (500, 1500),
        "saturation_milli": (500, 1500),
        "hue_degrees": (-36, 36),
    }
    return {
        name: draws.between(least, most, name)
        for name, (least, most) in ranges.items()
        if draws.below(2, f"{name}?") == 1
    }


def _is_varied(label: NDArray[np.uint8], policy: ViewPolicy) -> bool:
    """True if there are several classes, all with less than cat_max_ratio of the labelled pixels."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE] = 0
    largest, total = int(counts.max()), int(counts.sum())
    return 0 < largest < total and largest * 1000 < total * _milli(policy.cat_max_ratio)


def _milli(value: float) -> int:
    return round(value * 1000)
