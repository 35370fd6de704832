"""TrainConfig: all options of a training run, flat, checked on construction, saved as `config.json` in the run's folder."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from kdcache.cache.errors import UsageError
from kdcache.distill.recipes import RECIPES
from kdcache.distill.schedule import SCHEDULES
from kdcache.distill.units import bytes_text

SOURCES = ("cache", "online", "none")
MIXED_PRECISIONS = ("no", "bf16", "fp16")
CROP_CHECKS = {"always": 1, "sample": 16, "off": 0}
"""Compare every n-th crop with its digest, 0 for none. A digest costs some 5 % of decoding and cropping."""
KD_IGNORES = ("none", "void", "published")
"""Pixels that distillation leaves out: padding; padding and void; or none at all, as in the methods' published code."""
EVALUATION_MODES = ("whole", "slide")
WARM_UPS = ("steps", "all", "none")
DEFAULT_STEPS = 40_000
"""The command line's default length: the short schedule of mmsegmentation and CIRKD."""
DEFAULT_CACHE_LIMIT_BYTES = 50 * 10**9

VIEW_FIELDS = (
    *("recipe", "crop_height_px", "crop_width_px", "scale_min", "scale_max"),
    *("flip_probability", "photometric", "cat_max_ratio"),
)

# Resuming refuses other values of all fields but these: they say where files are, how fast they are read and how often
# something is written, and do not change what the student learns.
_LOCATIONS = ("out", "store", "data_root", "teacher_weights", "backbone_weights")
_READING = ("device", "workers", "check_crops", "cache_limit_bytes", "image_cache", "profile")
_INTERVALS = (
    "log_every_steps",
    "gradnorm_every_steps",
    "eval_every_steps",
    "save_every_steps",
    "save_every_s",
)
FREE_ON_RESUME = frozenset({*_LOCATIONS, *_READING, *_INTERVALS})

OPTIONS = {  # fields whose option is not named after them; two fields may share an option
    "crop_height_px": "--crop",
    "crop_width_px": "--crop",
    "flip_probability": "--flip",
    "teacher_weights": "--weights",
    "teacher_precision": "--precision",
    "budget_seconds": "--budget",
    "cache_limit_bytes": "--cache-limit",
    "log_every_steps": "--log-every",
    "gradnorm_every_steps": "--gradnorm-every",
    "eval_every_steps": "--eval-every",
    "save_every_steps": "--save-every",
    "save_every_s": "--save-every",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. The defaults are mmsegmentation's recipe for PSPNet on Cityscapes, with a batch of 8.

    Raises:
        UsageError: for a wrong value or combination, naming the option.
    """

    out: str
    """The run's folder."""

    # Method and data
    method: str = "logit"
    """A name of methods.METHODS."""
    source: str = "cache"
    """Where the teacher's outputs come from: `cache` (a store), `online` (the teacher runs at every step), or `none`."""
    store: str = ""
    """URL of the store with the views and, for source `cache`, the targets. Empty with fresh views of a dataset."""
    dataset: str = ""
    """Name of the dataset. May be empty with a store, which knows its dataset."""
    data_root: str = ""
    """Folder of the dataset; empty for $KDCACHE_DATA/<name> or ./data/<name>."""
    split: str = "train"
    """Split to train on. A store brings its own."""
    eval_split: str = "val"
    """Split to score on; empty for no scores."""
    fresh_views: bool = False
    """Draw new views in every epoch instead of using the store's. Only for sources `none` and `online`."""
    passes: int | None = None
    """Use only this many passes of the store, the first ones; None for all complete ones."""
    follow: bool = False
    """At the end of an epoch, add passes of the store that were completed after the run started."""

    # Views, for a run without a store. None takes the value of the dataset's own policy (cache/views).
    recipe: str | None = None
    """The recipe's name. It sets the policy of the views; the values that recipes.RECIPES has for it are in the fields."""
    crop_height_px: int | None = None
    crop_width_px: int | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    flip_probability: float | None = None
    photometric: bool | None = None
    cat_max_ratio: float | None = None

    # Networks
    student: str = "pspnet_resnet18"
    """A name of networks.NETWORKS."""
    preset: str = "kdcache"
    """A name of networks.PRESETS."""
    backbone_weights: str = "imagenet"
    """`imagenet` (torchvision's), `none`, or the path of a file."""
    teacher: str = ""
    """The online teacher, as for `build --teacher`."""
    teacher_weights: str = ""
    """Its weights, as for `build --weights`."""
    teacher_precision: str = "float32"
    """The precision that the online teacher runs in."""

    # How long: exactly one of the three
    steps: int | None = None
    epochs: int | None = None
    budget_seconds: float | None = None
    """Seconds of training. Start-up, evaluation and checkpoints do not count."""

    # Optimisation
    batch_size: int = 8
    """Crops a step, of all processes together."""
    lr: float = 0.01
    """Learning rate of SGD at the start."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_lr_factor: float = 1.0
    """Learning rate of heads and projectors, as a multiple of the backbone's (mmsegmentation: 1, semseg: 10)."""
    schedule: str = "poly"
    """`poly` or `cosine`, see schedule.SCHEDULES."""
    power: float = 0.9
    """Exponent of `poly`."""
    min_lr: float = 1e-4
    """Learning rate at the end."""

    # Losses
    temperature: float | None = None
    """Softmax temperature of the method's terms that have one; None for each term's own."""
    kd_weight: float = 1.0
    """A factor on the weights of all distillation terms."""
    kd_terms: str = ""
    """Weights that replace the method's own, as `term=weight,...`. A term of weight 0 is left out."""
    logit_weight: float | None = None
    """Replaces the weight of the term `logit`."""
    feature_weight: float | None = None
    """Replaces the weight of the term `feature`."""
    aux_weight: float = 0.4
    """Weight of the auxiliary head's cross-entropy."""
    kd_ignore: str = "none"
    """A value of KD_IGNORES."""

    # Machine
    mixed_precision: str = "no"
    """`no`, `bf16` or `fp16`, for the student's forward pass. Losses stay in float32."""
    compile: bool = False
    """Use torch.compile for the student and its loss. It takes minutes at the start and makes steps faster."""
    warm_up: str = "steps"
    """What counts as training time at a start: all steps but the one that compiles (`steps`), `all`, or `none` of the first two."""
    device: str = "auto"
    """`auto` for the device that Accelerate finds, `cpu` to use no accelerator."""
    workers: int | None = None
    """Loader processes of each training process. 0 loads in the training process; None chooses by the cores."""
    seed: int = 0
    """Seed of the student's initial weights, the order, dropout and fresh views."""
    pool_units: int = 8
    """Units of the store in one shuffle pool."""
    check_crops: str = "auto"
    """Compare replayed crops with the store's digests: `always`, `sample` (every 16th entry), `off`, or `auto`: `sample` on CUDA."""
    cache_limit_bytes: int = DEFAULT_CACHE_LIMIT_BYTES
    """Bytes of this host's disk for shards of remote stores and for decoded images."""
    image_cache: str = "auto"
    """Keep decoded images there: `off`, `auto` for the host's cache, or a folder."""

    # Output
    profile: bool = False
    """Record a torch trace of a few steps into the run's folder."""
    log_every_steps: int = 10
    gradnorm_every_steps: int = 200
    """Steps between gradient norms by loss term, 0 for never. Each costs one extra backward pass a term."""
    eval_every_steps: int = 0
    """Steps between evaluations, 0 for only at the end. The headline score is always the last one, not the best."""
    eval_mode: str = "whole"
    """`whole` images, or `slide` for windows of the crop's size."""
    save_every_steps: int = 0
    """Steps between checkpoints, 0 to save by time only."""
    save_every_s: float = 300.0
    """Seconds of training between checkpoints, 0 to save by steps only. The last step is always saved."""

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_numbers()
        self._check_length()
        self._check_source()
        self._check_views()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainConfig":
        """The inverse of to_dict. Raises UsageError for unknown fields, or if `out` is missing."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown fields in the configuration of a training run: {', '.join(unknown)}")
        if "out" not in values:
            raise UsageError("the configuration of a training run has no field 'out'")
        return cls(**values)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Lines `--option: mine, theirs` for the fields that differ and change what the student learns."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{option_of(name)}: {mine[name]!r}, {theirs[name]!r}"
            for name in mine
            if name not in FREE_ON_RESUME and mine[name] != theirs[name]
        ]

    def command(self) -> str:
        """The `kdcache distill ...` command of this run, without options that have their default."""
        words = ["kdcache", "distill", "--method", self.method]
        by_recipe = {name: setting.value for name, setting in RECIPES.get(self.recipe or "", {}).items()}
        for field in fields(self):
            value, default = getattr(self, field.name), by_recipe.get(field.name, field.default)
            if field.name != "method" and value is not None and value != default:
                words += _arguments(field.name, value)
        # Two fields share --crop, and two share --save-every: each pair becomes one option.
        if self.crop_height_px is not None:
            words += ["--crop", f"{self.crop_height_px}x{self.crop_width_px}"]
        if self.save_every_steps:
            words += ["--save-every", str(self.save_every_steps)]
        elif self.save_every_s != 300.0:
            words += ["--save-every", f"{self.save_every_s:g}s"]
        return shlex.join(words)

    def view_overrides(self) -> dict[str, Any]:
        """The arguments of cache.views.policy.view_policy that this run sets."""
        return {name: getattr(self, name) for name in VIEW_FIELDS if getattr(self, name) is not None}

    def _check_choices(self) -> None:
        choices = {
            "source": SOURCES,
            "schedule": SCHEDULES,
            "mixed_precision": MIXED_PRECISIONS,
            "check_crops": ("auto", *CROP_CHECKS),
            "kd_ignore": KD_IGNORES,
            "eval_mode": EVALUATION_MODES,
            "warm_up": WARM_UPS,
        }
        for name, known in choices.items():
            value = getattr(self, name)
            if value not in known:
                raise UsageError(
                    f"{option_of(name)}: unknown value {value!r}", hint=f"one of: {', '.join(known)}"
                )
        for name in ("out", "method", "student"):
            if not getattr(self, name):
                raise UsageError(f"{option_of(name)} is empty")

    def _check_numbers(self) -> None:
        for name in ("batch_size", "log_every_steps", "pool_units", "cache_limit_bytes"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lr", "temperature", "power", "head_lr_factor", "kd_weight"):
            value = getattr(self, name)
            _require(value is None or 0 < value < float("inf"), name, value, "above 0")
        weights = ("weight_decay", "logit_weight", "feature_weight", "aux_weight")
        for name in (*weights, "min_lr", "save_every_s"):
            value = getattr(self, name)
            _require(value is None or 0 <= value < float("inf"), name, value, "0 or more")
        parse_weights(self.kd_terms)
        for name in ("seed", "gradnorm_every_steps", "eval_every_steps", "save_every_steps", "workers"):
            value = getattr(self, name)
            _require(value is None or value >= 0, name, value, "0 or more")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "from 0 to below 1")
        _require(self.min_lr <= self.lr, "min_lr", self.min_lr, f"at most the learning rate, {self.lr}")

    def _check_length(self) -> None:
        lengths = {"steps": self.steps, "epochs": self.epochs, "budget_seconds": self.budget_seconds}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) != 1:
            found = ", ".join(" ".join(_arguments(*pair)) for pair in given.items()) or "none of them"
            raise UsageError(
                f"give exactly one of --budget, --steps and --epochs; got {found}", hint="--steps 40000"
            )
        ((name, value),) = given.items()
        _require(0 < value < float("inf"), name, value, "above 0")

    def _check_source(self) -> None:
        both = f"--method {self.method} with --source {self.source}"
        if self.method == "none" and self.source != "none":
            raise UsageError(f"{both}: method none learns from labels only", hint="--source none")
        if self.method != "none" and self.source == "none":
            raise UsageError(
                f"{both}: the method needs a teacher's outputs", hint="--source cache or --source online"
            )
        if self.source == "cache" and not self.store:
            raise UsageError(
                "--source cache needs a store",
                hint="--store URL; `kdcache ls` lists the stores that you have",
            )
        if self.source == "cache" and self.fresh_views:
            raise UsageError(
                "--fresh-views with --source cache: a store has the teacher's outputs for its own views only",
                hint="leave out --fresh-views, or use --source online",
            )
        if self.passes is not None and (self.fresh_views or not self.store):
            raise UsageError(
                "--passes selects passes of a store, and fresh views do not come from a store",
                hint="leave out --passes, or use --store URL without --fresh-views",
            )
        _require(self.passes is None or self.passes >= 1, "passes", self.passes, "at least 1")
        if self.follow and self.passes is not None:
            raise UsageError(
                "--follow adds later passes, --passes excludes them", hint="leave out one of the two"
            )
        if self.follow and (self.fresh_views or not self.store):
            raise UsageError(
                "--follow adds passes of a store, and fresh views do not come from a store",
                hint="leave out --follow, or use --store URL without --fresh-views",
            )
        if self.source == "online" and not self.teacher:
            raise UsageError(
                "--source online needs a teacher", hint="--teacher pspnet_resnet101 --weights auto"
            )

    def _check_views(self) -> None:
        if not self.store and not self.fresh_views:
            raise UsageError(
                "the run has nothing to train on: give a store, or draw fresh views",
                hint="--store URL, or --dataset NAME --fresh-views",
            )
        if not self.store and not self.dataset:
            raise UsageError("--fresh-views needs a dataset or a store", hint="--dataset NAME or --store URL")
        overrides = self.view_overrides()
        if self.store and overrides:
            options = ", ".join(dict.fromkeys(option_of(name) for name in overrides))
            raise UsageError(
                f"{options}: the store {self.store} already determines the views",
                hint=f"leave out {options}; or --source none or online with --dataset NAME --fresh-views",
            )
        if (self.crop_height_px is None) != (self.crop_width_px is None):
            raise UsageError("--crop needs a height and a width, in pixels", hint="--crop 512x1024")
        for name in ("crop_height_px", "crop_width_px"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")


def option_of(field: str) -> str:
    """The option of `kdcache distill` that sets a field."""
    return OPTIONS.get(field, "--" + field.replace("_", "-"))


def parse_weights(text: str) -> dict[str, float]:
    """Weights by term from a text like "pair=10,holistic=0". Raises UsageError for any other text."""
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            weights[name.strip()] = float("nan")  # fails the test of the range below
        if not 0 <= weights[name.strip()] < float("inf"):
            raise UsageError(
                f"--kd-terms: {part!r} is not TERM=WEIGHT with a weight of 0 or more",
                hint="--kd-terms pair=10,holistic=0",
            )
    return weights


def _arguments(field: str, value: Any) -> list[str]:
    """The option of a field with its value, as words of a command line. Empty where `command` writes the option."""
    if OPTIONS.get(field) in ("--crop", "--save-every"):
        return []
    option = option_of(field)
    if field == "flip_probability":
        return ["--flip" if value else "--no-flip"]
    if isinstance(value, bool):
        return [option if value else "--no-" + option.removeprefix("--")]
    if field == "budget_seconds":
        return [option, f"{value:.12g}s"]
    if field == "cache_limit_bytes":
        return [option, bytes_text(value)]
    return [option, str(value)]


def _require(is_valid: bool, name: str, value: object, what: str) -> None:
    if not is_valid:
        raise UsageError(f"{option_of(name)} must be {what}, got {value}")
