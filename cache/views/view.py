"""Views: one augmented crop of one image, as explicit integers, drawn once, stored and replayed.

A view is a pure function of (seed, image id, view index), and of the label where the policy looks at it. The
draws are counter-based: each parameter is a BLAKE2b hash of what it belongs to, so none depends on another,
on the order of the draws, or on a library's random stream. `kdcache.cache.views.replay` turns a view into pixels.

The distributions are mmsegmentation's (RandomResize, RandomCrop with cat_max_ratio, RandomFlip,
PhotoMetricDistortion), except that the crop is cut from the source before it is resized, which spares
resizing what is thrown away.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.errors import DataError, UsageError, unknown_name
from kdcache.cache.images.classes import IGNORE
from kdcache.cache.views.pixels import resize_label, rounded

TARGETS = ("logits", "features", "aux", "backbone")
"""What a teacher may give for a view, each as a map of stride 8 or so, see maps.py."""

MAX_SIDE_PX = 2**15

_PERSON = b"kdcache.view.1"  # change it with anything that changes what is drawn
_CAT_MAX_TRIES = 10
_VIEW_RANGES = {
    "scale_milli": (1, 16_000),
    "top": (0, 2**30),
    "left": (0, 2**30),
    "box_height": (1, 2**30),
    "box_width": (1, 2**30),
    "height": (1, MAX_SIDE_PX),
    "width": (1, MAX_SIDE_PX),
    "flip": (0, 1),
    "brightness_levels": (-255, 255),
    "contrast_milli": (0, 4000),
    "saturation_milli": (0, 4000),
    "hue_degrees": (-180, 180),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPolicy:
    """All that determines a view, given the seed, the image and its label. Fractions are kept to 1/1000.

    Raises:
        UsageError: a value out of its range, by name.
    """

    crop_height_px: int
    crop_width_px: int
    scale_min: float = 0.5
    scale_max: float = 2.0
    scale_step: float = 0.0  # 0: any scale of the range; else scale_min + k * scale_step
    base_long_px: int = 0  # scale 1 is the image fitted into long x short, ratio kept; 0: the image as it is
    base_short_px: int = 0
    flip_probability: float = 0.5
    photometric: bool = False
    cat_max_ratio: float = 1.0  # redraw a crop of which one class fills this share or more; 1: never

    def __post_init__(self) -> None:
        for name in ("crop_height_px", "crop_width_px"):
            self._check_int(name, 1)
        for name in ("base_long_px", "base_short_px"):
            self._check_int(name, 0)
        self._check_fraction("scale_min", 0.01, 16)
        self._check_fraction("scale_max", self.scale_min, 16)
        self._check_fraction("scale_step", 0, 16)
        self._check_fraction("flip_probability", 0, 1)
        self._check_fraction("cat_max_ratio", 0.01, 1)
        if not isinstance(self.photometric, bool):
            raise UsageError(f"photometric must be true or false, got {self.photometric!r}")
        if (self.base_long_px == 0) != (self.base_short_px == 0) or self.base_long_px < self.base_short_px:
            raise UsageError(
                f"base_long_px {self.base_long_px} with base_short_px {self.base_short_px}: "
                "give both, the longer first",
                hint="for example 2048 and 512, or 0 and 0 to start from the image's own size",
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.crop_height_px, self.crop_width_px

    def to_dict(self) -> dict[str, Any]:
        """JSON values by field; equal policies give equal ones."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViewPolicy":
        """The inverse of to_dict. Raises UsageError for a missing or unknown field."""
        names = {f.name for f in fields(cls)}
        if set(values) != names:
            odd = ", ".join(sorted(set(values) ^ names))
            raise UsageError(f"view policy: missing or unknown fields: {odd}")
        return cls(**values)

    def _check_int(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIDE_PX:
            raise UsageError(f"{name} must be a whole number from {least} to {MAX_SIDE_PX}, got {value!r}")

    def _check_fraction(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= (kept := round(float(value), 3)) <= most:
            raise UsageError(f"{name} must be a number from {least} to {most}, got {value!r}")
        object.__setattr__(self, name, kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """One view: a box of source pixels, resized to the valid region, mirrored, its colours distorted.

    Raises:
        ValueError: a value that no policy can draw, so that a damaged row never reaches the pixel arithmetic.
    """

    ROW_FIELDS: ClassVar[tuple[str, ...]] = tuple(_VIEW_RANGES)  # the names of the fields below

    scale_milli: int  # as drawn, for information: replay needs only the box and the valid region
    top: int  # of the box, in source pixels
    left: int
    box_height: int
    box_width: int
    height: int  # of the valid region, at the top left of the crop, in crop pixels
    width: int
    flip: int  # 1: the valid region is mirrored
    brightness_levels: int = 0
    contrast_milli: int = 1000
    saturation_milli: int = 1000
    hue_degrees: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _VIEW_RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"view: {name} must be from {least} to {most}, got {value}")

    @property
    def distorts_colours(self) -> bool:
        colours = (self.brightness_levels, self.contrast_milli, self.saturation_milli, self.hue_degrees)
        return colours != (0, 1000, 1000, 0)

    def to_row(self) -> list[int]:
        """The fields as numbers, in the order of ROW_FIELDS."""
        return [getattr(self, name) for name in self.ROW_FIELDS]

    @classmethod
    def from_row(cls, row: list[int]) -> "View":
        """The inverse of to_row. Raises ValueError for values that cannot be."""
        return cls(**dict(zip(cls.ROW_FIELDS, row, strict=True)))


def draw_view(
    policy: ViewPolicy,
    seed: int,
    image_id: str,
    view_index: int,
    size: tuple[int, int],  # (H, W) of the image
    label: NDArray[np.uint8] | None,  # (H, W) train ids; looked at only where cat_max_ratio < 1
) -> View:
    """View `view_index` of an image. The same arguments give the same view everywhere."""
    if label is not None and label.shape != size:
        raise DataError(
            f"image {image_id} is {size[0]}x{size[1]}, its label {label.shape[0]}x{label.shape[1]}"
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
    if label is None or policy.cat_max_ratio == 1 or fits:
        return view
    for attempt in range(1, _CAT_MAX_TRIES):
        if _is_varied(crop_label(view, label), policy):
            break
        view = replace(view, **_draw_box(policy, size, scaled, draws, attempt))
    return view  # the last try stands, whatever it holds


def crop_label(
    view: View,
    label: NDArray[np.uint8],  # (H, W)
) -> NDArray[np.uint8]:
    """The label under a view's valid region, (height, width), before the flip."""
    box = label[view.top : view.top + view.box_height, view.left : view.left + view.box_width]
    return resize_label(box, view.height, view.width)


DATASET_POLICIES: dict[str, ViewPolicy] = {
    # mmsegmentation's configs of each dataset; camvid and folder after its cityscapes, without its crop size.
    "cityscapes": ViewPolicy(crop_height_px=512, crop_width_px=1024, photometric=True, cat_max_ratio=0.75),
    "ade20k": ViewPolicy(
        crop_height_px=512,
        crop_width_px=512,
        base_long_px=2048,
        base_short_px=512,
        photometric=True,
        cat_max_ratio=0.75,
    ),
    "voc2012": ViewPolicy(
        crop_height_px=512,
        crop_width_px=512,
        base_long_px=2048,
        base_short_px=512,
        photometric=True,
        cat_max_ratio=0.75,
    ),
    "camvid": ViewPolicy(crop_height_px=360, crop_width_px=480, photometric=True, cat_max_ratio=0.75),
    "folder": ViewPolicy(crop_height_px=512, crop_width_px=512, photometric=True, cat_max_ratio=0.75),
    # The crop is the whole image here: smaller scales would mostly give padding. view_policy sets its size.
    "streets": ViewPolicy(
        crop_height_px=256, crop_width_px=512, scale_min=0.75, photometric=True, cat_max_ratio=0.75
    ),
}

POLICIES: dict[str, dict[str, Any]] = {
    "mmseg": {},
    # CIRKD, DIST, Af-DCD: 0.5 to 2.0 of the image's own size in tenths, no colour.
    "cirkd": {
        "scale_min": 0.5,
        "scale_max": 2.0,
        "scale_step": 0.1,
        "base_long_px": 0,
        "base_short_px": 0,
        "photometric": False,
        "cat_max_ratio": 1.0,
    },
    # SKD, IFVD, CWD: 512x512 crops, 0.7 to 2.1 in tenths, no colour.
    "skd": {
        "crop_height_px": 512,
        "crop_width_px": 512,
        "scale_min": 0.7,
        "scale_max": 2.1,
        "scale_step": 0.1,
        "base_long_px": 0,
        "base_short_px": 0,
        "photometric": False,
        "cat_max_ratio": 1.0,
    },
    # Views of distill.recipes. Colours are in a digest of arXiv 2604.25530; its abstract leaves the rest open, which is
    # mmsegmentation's here.
    "paper-cityscapes": {"crop_height_px": 512, "crop_width_px": 1024, "photometric": True},
    "paper-ade20k": {"crop_height_px": 512, "crop_width_px": 512, "photometric": True},
    "teacher-cityscapes": {"crop_height_px": 512, "crop_width_px": 1024, "photometric": True},
    "teacher-ade20k": {"crop_height_px": 512, "crop_width_px": 512, "photometric": True},
    "camvid": {},
    "streets": {},
    "teacher-streets": {},
}


def view_policy(dataset_name: str, recipe: str = "mmseg", **overrides: Any) -> ViewPolicy:
    """The policy for a dataset ("cityscapes", "streets:96x192:200"), with the overrides that are not None.

    Raises:
        UsageError: an unknown dataset, recipe or field, or a value out of its range.
    """
    family, _, rest = dataset_name.partition(":")
    _check_known("dataset", family, DATASET_POLICIES)
    _check_known("view recipe", recipe, POLICIES)
    for name in overrides:
        _check_known("view option", name, ViewPolicy.__dataclass_fields__)
    given = {name: value for name, value in overrides.items() if value is not None}
    crop = _streets_crop(rest) if family == "streets" else {}
    return replace(DATASET_POLICIES[family], **{**POLICIES[recipe], **crop, **given})


class _Draws:
    """Numbers named by what they are for: independent of each other and of the order they are drawn in."""

    def __init__(self, seed: int, image_id: str, view_index: int) -> None:
        self._prefix = f"{seed} {view_index} "
        self._suffix = f" {image_id}"

    def below(self, n: int, parameter: str, attempt: int = 0) -> int:
        """An integer of 0..n-1; its bias is below n / 2^64."""
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
    """(H, W) after the scale, as mmcv's imrescale rounds it."""
    numerator, denominator = scale_milli, 1000
    if policy.base_long_px:
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
    """A crop window in the scaled image, as the box of whole source pixels nearest to it."""
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
    """The ranges of mmsegmentation's PhotoMetricDistortion, each applied with probability 1/2."""
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
    """More than one class, and none with cat_max_ratio or more of the labelled pixels."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[IGNORE] = 0
    largest, total = int(counts.max()), int(counts.sum())
    return 0 < largest < total and largest * 1000 < total * _milli(policy.cat_max_ratio)


def _streets_crop(rest: str) -> dict[str, int]:
    """The image size in "96x192:200"; nothing where the name leaves it to the dataset's default."""
    height, _, width = rest.partition(":")[0].partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        return {}
    return {"crop_height_px": int(height), "crop_width_px": int(width)}


def _check_known(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise unknown_name(what, name, known)


def _milli(value: float) -> int:
    return round(value * 1000)
