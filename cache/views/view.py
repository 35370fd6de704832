"""Views: one augmented crop of one image, as explicit integers that are stored and replayed.

A view is a pure function of (seed, image id, view index), and of the label if the policy uses it: see drawing.py.
replay.py turns a view into pixels.
"""

from dataclasses import dataclass
from typing import ClassVar

from kdcache.cache.views.policy import MAX_SIDE_PX

TARGETS = ("logits", "features", "aux", "backbone")
"""What a teacher can give for a view, each as a map of stride 8 or so, see maps.py."""

# The order of these fields is the order of the columns in a store.
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
class View:
    """One view: a box of source pixels, resized to the valid region, mirrored, with distorted colours.

    Raises:
        ValueError: a value that no policy can draw. So a damaged row never reaches the pixel arithmetic.
    """

    ROW_FIELDS: ClassVar[tuple[str, ...]] = tuple(_VIEW_RANGES)  # the names of the fields below

    scale_milli: int  # for information: replay needs only the box and the valid region
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
        """False if the colours stay as they are, which skips the arithmetic."""
        colours = (self.brightness_levels, self.contrast_milli, self.saturation_milli, self.hue_degrees)
        return colours != (0, 1000, 1000, 0)

    def to_row(self) -> list[int]:
        """The fields as integers, in the order of ROW_FIELDS."""
        return [getattr(self, name) for name in self.ROW_FIELDS]

    @classmethod
    def from_row(cls, row: list[int]) -> "View":
        """The inverse of to_row. Raises ValueError for invalid values."""
        return cls(**dict(zip(cls.ROW_FIELDS, row, strict=True)))
