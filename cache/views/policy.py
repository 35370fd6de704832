"""View policies: what determines the views of a dataset, and the policies that have names.

The distributions are mmsegmentation's: RandomResize, RandomCrop with cat_max_ratio, RandomFlip, PhotoMetricDistortion.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from kdcache.cache.errors import UsageError, unknown_name

MAX_SIDE_PX = 2**15


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPolicy:
    """Everything that determines a view, besides the seed, the image and its label. Fractions are rounded to 1/1000.

    Raises:
        UsageError: a value is out of range; names the field.
    """

    crop_height_px: int
    crop_width_px: int
    scale_min: float = 0.5
    scale_max: float = 2.0
    scale_step: float = 0.0  # 0: any scale of the range; otherwise scale_min + k * scale_step
    base_long_px: int = 0  # scale 1 is the image fitted into long x short, keeping its ratio; 0: the original
    base_short_px: int = 0
    flip_probability: float = 0.5
    photometric: bool = False
    cat_max_ratio: float = 1.0  # draw again if one class fills this part of a crop or more; 1: never

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
                "both must be given, the longer first",
                hint="for example 2048 and 512, or 0 and 0 to start from the image's own size",
            )

    @property
    def crop_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.crop_height_px, self.crop_width_px

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values. Equal policies give equal values."""
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
        # bool is an int in Python; `crop_height_px=True` is a mistake.
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIDE_PX:
            raise UsageError(f"{name} must be a whole number from {least} to {MAX_SIDE_PX}, got {value!r}")

    def _check_fraction(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= (kept := round(float(value), 3)) <= most:
            raise UsageError(f"{name} must be a number from {least} to {most}, got {value!r}")
        # Rounded, so that 0.75 and 0.7500001 are one policy and give one key to a store.
        object.__setattr__(self, name, kept)


DATASET_POLICIES: dict[str, ViewPolicy] = {
    # mmsegmentation's configs of each dataset. camvid and folder follow its cityscapes, with other crop sizes.
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
    # The crop is as large as the image, so smaller scales would give mostly padding. view_policy sets its size.
    "streets": ViewPolicy(
        crop_height_px=256, crop_width_px=512, scale_min=0.75, photometric=True, cat_max_ratio=0.75
    ),
}

POLICIES: dict[str, dict[str, Any]] = {
    "mmseg": {},
    # CIRKD, DIST, Af-DCD: scales from 0.5 to 2.0 in steps of 0.1, no colour distortion.
    "cirkd": {
        "scale_min": 0.5,
        "scale_max": 2.0,
        "scale_step": 0.1,
        "base_long_px": 0,
        "base_short_px": 0,
        "photometric": False,
        "cat_max_ratio": 1.0,
    },
    # SKD, IFVD, CWD: crops of 512x512, scales from 0.7 to 2.1 in steps of 0.1, no colour distortion.
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
    # The views of the training recipes in distill/recipes.py. That colours are distorted is known of arXiv 2604.25530;
    # what the paper's abstract does not say is mmsegmentation's here.
    "paper-cityscapes": {"crop_height_px": 512, "crop_width_px": 1024, "photometric": True},
    "paper-ade20k": {"crop_height_px": 512, "crop_width_px": 512, "photometric": True},
    "teacher-cityscapes": {"crop_height_px": 512, "crop_width_px": 1024, "photometric": True},
    "teacher-ade20k": {"crop_height_px": 512, "crop_width_px": 512, "photometric": True},
    "camvid": {},
    "streets": {},
    "teacher-streets": {},
}


def view_policy(dataset_name: str, policy: str | None = None, **overrides: Any) -> ViewPolicy:
    """The policy for a dataset ("cityscapes", "streets:96x192:200").

    Args:
        policy: a name of POLICIES, which changes the dataset's own policy; None: mmseg, which changes nothing.
        overrides: fields of ViewPolicy; None leaves a field as it is.

    Raises:
        UsageError: an unknown dataset, policy or field, or a value out of range.
    """
    family, _, rest = dataset_name.partition(":")
    _check_known("dataset", family, DATASET_POLICIES)
    policy = policy or "mmseg"
    _check_known("view policy", policy, POLICIES)
    for name in overrides:
        _check_known("view option", name, ViewPolicy.__dataclass_fields__)
    given = {name: value for name, value in overrides.items() if value is not None}
    crop = _streets_crop(rest) if family == "streets" else {}
    return replace(DATASET_POLICIES[family], **{**POLICIES[policy], **crop, **given})


def _streets_crop(rest: str) -> dict[str, int]:
    """The crop that fits the image size in "96x192:200"; empty if the name has no size."""
    height, _, width = rest.partition(":")[0].partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        return {}
    return {"crop_height_px": int(height), "crop_width_px": int(width)}


def _check_known(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise unknown_name(what, name, known)
