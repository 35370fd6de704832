"""TrainConfig: everything that a training run was asked to do, flat, checked when it is made.

It stands as `config.json` in the run's folder. Resuming compares it field by field, except for those named in
FREE_ON_RESUME: where things lie and how fast they are read, not what is learnt.
"""

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
"""Every how many entries a crop is compared; a digest costs some 5 % of decoding and cutting."""
KD_IGNORES = ("none", "void", "published")
"""Pixels that distillation leaves out: padding alone, void too, or nothing at all, as the methods' own code has it."""
EVALUATION_MODES = ("whole", "slide")
WARM_UPS = ("steps", "all", "none")
DEFAULT_STEPS = 40_000
"""What the command line takes where no length is given: mmsegmentation's and CIRKD's short schedule."""
DEFAULT_CACHE_LIMIT_BYTES = 50 * 10**9

VIEW_FIELDS = (
    *("recipe", "crop_height_px", "crop_width_px", "scale_min", "scale_max"),
    *("flip_probability", "photometric", "cat_max_ratio"),
)

_PLACES = ("out", "store", "data_root", "teacher_weights", "backbone_weights")
_READING = ("device", "workers", "check_crops", "cache_limit_bytes", "profile")
_INTERVALS = (
    "log_every_steps",
    "gradnorm_every_steps",
    "eval_every_steps",
    "save_every_steps",
    "save_every_s",
)
FREE_ON_RESUME = frozenset({*_PLACES, *_READING, *_INTERVALS})

OPTIONS = {  # fields whose option has another name; two fields may share one
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
    """One training run. Defaults are mmsegmentation's recipe for PSPNet on Cityscapes, at a batch of 8.

    Raises:
        UsageError: for a value or a combination that makes no sense, naming the field.
    """

    out: str
    """The run's folder."""

    # What is learnt, and from where
    method: str = "logit"
    """A name of methods.METHODS."""
    source: str = "cache"
    """Where the teacher's outputs come from: `cache` (a store), `online` (the teacher runs along), or `none`."""
    store: str = ""
    """URL of the store that gives the views, and for `cache` the targets. Empty with fresh views of a dataset."""
    dataset: str = ""
    """Name of the dataset. With a store it may be left empty: the store knows it."""
    data_root: str = ""
    """Folder of the dataset; empty for $KDCACHE_DATA/<name> or ./data/<name>."""
    split: str = "train"
    """Split to train on, where no store says it."""
    eval_split: str = "val"
    """Split of the scores; empty for none."""
    fresh_views: bool = False
    """Draw new views for ever instead of taking the store's. For `none` and `online` only."""
    passes: int | None = None
    """Passes of the store that the run is confined to, the first ones; None for all that are complete."""

    follow: bool = False
    """Take in, at an epoch's end, passes of the store that were completed since the run was begun."""

    # Views, where no store says them; None takes the dataset's recipe (policy.DATASET_POLICIES)
    recipe: str | None = None
    """A name of policy.POLICIES. The recipe of that name in recipes.RECIPES, if there is one, sets the fields."""
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
    """The online teacher, as `build --teacher` takes it."""
    teacher_weights: str = ""
    """Its weights, as `build --weights` takes them."""
    teacher_precision: str = "float32"
    """The precision that the online teacher runs in."""

    # How long: exactly one of the three
    steps: int | None = None
    epochs: int | None = None
    budget_seconds: float | None = None
    """Seconds of training. Start-up, evaluation and checkpoints are outside of the account."""

    # Optimisation
    batch_size: int = 8
    """Crops a step, over all processes."""
    lr: float = 0.01
    """Learning rate of SGD at the start."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    head_lr_factor: float = 1.0
    """Learning rate of the heads and the projector over the backbone's (mmsegmentation: 1, semseg: 10)."""
    schedule: str = "poly"
    """`poly` or `cosine`, over the fraction of the budget that is spent."""
    power: float = 0.9
    """Exponent of `poly`."""
    min_lr: float = 1e-4
    """Learning rate at the end."""

    # Losses
    temperature: float | None = None
    """Softmax temperature T of the method's terms that have one; None takes each term's own."""
    kd_weight: float = 1.0
    """Factor of all weights of the method's recipe."""
    kd_terms: str = ""
    """Weights in place of the recipe's, as `term=weight,...`; a term of weight 0 is left out."""
    logit_weight: float | None = None
    """The same for the term `logit`."""
    feature_weight: float | None = None
    """The same for the term `feature`."""
    aux_weight: float = 0.4
    """Weight of the auxiliary head's cross-entropy."""
    kd_ignore: str = "none"
    """`void` takes unlabelled pixels out of the distillation terms; `published` leaves padding in."""

    # The machine
    mixed_precision: str = "no"
    """`no`, `bf16` or `fp16`: the student's forward pass, by Accelerate. Losses stay in float32."""
    compile: bool = False
    """torch.compile of the student's forward pass and its loss: minutes at the start, quicker steps after."""
    warm_up: str = "steps"
    """What of every start the account holds: `steps`, the first ones but not compiling; `all`; or `none` of it."""
    device: str = "auto"
    """`auto` takes what Accelerate finds; `cpu` stays off the accelerator."""
    workers: int | None = None
    """Processes a rank that read and cut crops; 0 reads in the training process, None takes what the cores allow."""
    seed: int = 0
    """Seed of the student's start, of the order, of dropout and of fresh views."""
    pool_units: int = 8
    """Units of the store that one shuffle pool spans."""
    check_crops: str = "always"
    """Compare replayed crops with the store's digests: `always`, `sample` (every 16th entry) or `off`."""
    cache_limit_bytes: int = DEFAULT_CACHE_LIMIT_BYTES
    """What the shards of stores that are not on this host may take of its disk."""

    # What is written
    profile: bool = False
    """Write where a step's time goes with every line of metrics, and a trace of a few steps."""
    log_every_steps: int = 10
    gradnorm_every_steps: int = 200
    """Steps between gradient norms by loss term, 0 for never. Each costs one more backward pass a term."""
    eval_every_steps: int = 0
    """Steps between evaluations, 0 for one at the end. The headline score is the last one whatever happened before."""
    eval_mode: str = "whole"
    """`whole` image, or `slide` windows of the crop's size."""
    save_every_steps: int = 0
    """Steps between checkpoints, 0 for by time alone."""
    save_every_s: float = 300.0
    """Seconds of training between checkpoints, 0 for by steps alone. One more stands at the end."""

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
        """The inverse of to_dict. Raises UsageError for unknown fields."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown fields of a training run: {', '.join(unknown)}")
        if "out" not in values:
            raise UsageError("the description of a training run lacks the field out")
        return cls(**values)

    def differences(self, other: "TrainConfig") -> list[str]:
        """Lines `--option: mine, theirs` for the fields that determine what is learnt and differ."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"{option_of(name)}: {mine[name]!r}, {theirs[name]!r}"
            for name in mine
            if name not in FREE_ON_RESUME and mine[name] != theirs[name]
        ]

    def command(self) -> str:
        """The command line that asks for this run, `kdcache distill ...`; what it would be anyway is left out."""
        words = ["kdcache", "distill", "--method", self.method]
        by_recipe = {name: figure.value for name, figure in RECIPES.get(self.recipe or "", {}).items()}
        for field in fields(self):
            value, unsaid = getattr(self, field.name), by_recipe.get(field.name, field.default)
            if field.name != "method" and value is not None and value != unsaid:
                words += _arguments(field.name, value)
        if self.crop_height_px is not None:
            words += ["--crop", f"{self.crop_height_px}x{self.crop_width_px}"]
        if self.save_every_steps:
            words += ["--save-every", str(self.save_every_steps)]
        elif self.save_every_s != 300.0:
            words += ["--save-every", f"{self.save_every_s:g}s"]
        return shlex.join(words)

    def view_overrides(self) -> dict[str, Any]:
        """Arguments of `policy.view_policy` that this run sets itself."""
        given = {name: getattr(self, name) for name in VIEW_FIELDS if getattr(self, name) is not None}
        return {"policy" if name == "recipe" else name: value for name, value in given.items()}

    def _check_choices(self) -> None:
        choices = {
            "source": SOURCES,
            "schedule": SCHEDULES,
            "mixed_precision": MIXED_PRECISIONS,
            "check_crops": CROP_CHECKS,
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
            said = ", ".join(" ".join(_arguments(*pair)) for pair in given.items()) or "none of them"
            raise UsageError(f"one of --budget, --steps and --epochs says how long to train; got {said}")
        ((name, value),) = given.items()
        _require(0 < value < float("inf"), name, value, "above 0")

    def _check_source(self) -> None:
        said = f"--method {self.method} with --source {self.source}"
        if self.method == "none" and self.source != "none":
            raise UsageError(f"{said}: no teacher is asked", hint="--source none")
        if self.method != "none" and self.source == "none":
            raise UsageError(
                f"{said}: the method needs a teacher's outputs", hint="--source cache or --source online"
            )
        if self.source == "cache" and not self.store:
            raise UsageError(
                "--source cache needs a store", hint="--store URL; `kdcache ls` shows what there is"
            )
        if self.source == "cache" and self.fresh_views:
            raise UsageError(
                "--fresh-views with --source cache: the store holds the teacher's outputs for its own views only",
                hint="leave --fresh-views out, or --source online",
            )
        if self.passes is not None and (self.fresh_views or not self.store):
            raise UsageError(
                "--passes: fresh views are of no pass of a store", hint="leave --passes or --fresh-views out"
            )
        _require(self.passes is None or self.passes >= 1, "passes", self.passes, "at least 1")
        if self.follow and self.passes is not None:
            raise UsageError(
                "--follow takes in later passes, --passes keeps them out", hint="leave one of them out"
            )
        if self.follow and (self.fresh_views or not self.store):
            raise UsageError(
                "--follow: new views are drawn as they are needed, there are no passes to follow"
            )
        if self.source == "online" and not self.teacher:
            raise UsageError(
                "--source online needs a teacher", hint="--teacher pspnet_resnet101 --weights auto"
            )

    def _check_views(self) -> None:
        if not self.store and not self.fresh_views:
            raise UsageError(
                "nothing says which views to train on", hint="--store URL, or --dataset NAME --fresh-views"
            )
        if not self.store and not self.dataset:
            raise UsageError("neither a store nor a dataset is given", hint="--store URL or --dataset NAME")
        overrides = self.view_overrides()
        if self.store and overrides:
            named = ", ".join(dict.fromkeys(option_of(name) for name in overrides))
            raise UsageError(
                f"{named}: the views are those of {self.store}",
                hint="leave it out; or --fresh-views with --dataset NAME, for --source none and online",
            )
        if (self.crop_height_px is None) != (self.crop_width_px is None):
            raise UsageError("--crop is a height and a width, in pixels", hint="--crop 512x1024")
        for name in ("crop_height_px", "crop_width_px"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, value, "at least 1")


def option_of(field: str) -> str:
    """The option of `kdcache distill` that sets a field."""
    return OPTIONS.get(field, "--" + field.replace("_", "-"))


def parse_weights(text: str) -> dict[str, float]:
    """Weights by term, of a text like "pair=10,holistic=0". Raises UsageError."""
    weights = {}
    for part in filter(None, text.split(",")):
        name, _, number = part.partition("=")
        try:
            weights[name.strip()] = float(number)
        except ValueError:
            weights[name.strip()] = float("nan")
        if not 0 <= weights[name.strip()] < float("inf"):
            raise UsageError(
                f"--kd-terms: {part!r} is no term and its weight, 0 or more",
                hint="--kd-terms pair=10,holistic=0",
            )
    return weights


def _arguments(field: str, value: Any) -> list[str]:
    """Words of a command line; none for fields that `command` writes itself."""
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


def _require(holds: bool, name: str, value: object, what: str) -> None:
    if not holds:
        raise UsageError(f"{option_of(name)} must be {what}, got {value}")
