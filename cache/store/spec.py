"""The spec: everything that determines the bytes of a store. Its digest is the store's key.

The spec is the request. What has to be measured (codec steps, offsets) is in the calibration, and what differs between
machines (versions, batch size, threads) is in the commit records.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcache.cache.codecs.packing import Packing
from kdcache.cache.codecs.request import canonical_request
from kdcache.cache.errors import StoreDamagedError, UsageError, unknown_name
from kdcache.cache.storage.documents import MALFORMED, parse_json, require_same_text
from kdcache.cache.views.crops import REPLAY, canonical_inputs, crop_packings
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import ENTRY_COLUMNS
from kdcache.cache.views.view import TARGETS

if TYPE_CHECKING:
    from kdcache.cache.codecs.codec import Codec

FORMAT_VERSION = 1
VIEWS = "views"  # the array of view parameters and crop digests

MAX_UNIT_ENTRIES = 4096
MAX_UNIT_BYTES = 4 * 2**30  # before compression: a whole unit is in memory, several times
MAX_IMAGES = 2**20
MAX_CROP_PIXELS = 2**26
MAX_CLASSES = 255  # train ids are bytes, and 255 is void
MAX_SEED = 2**63

# Before compression: large enough for throughput, small enough to have several in memory
_SHARD_BYTES = 64 * 2**20
_DEFAULT_UNIT_ENTRIES = 64  # an upper limit


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetIdentity:
    """Identifies the images, labels and classes."""

    name: str
    split: str
    images: int
    fingerprint: str  # sha256 over ids and file sizes; the crop digests protect the content
    class_names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """One array of targets: the request for its codec, and the shape of an entry."""

    codec: str  # canonical request
    shape: tuple[int, int, int]  # (C, h, w)

    @property
    def raw_bytes(self) -> int:
        """Bytes of one entry in half precision. Independent of its codec, which is known only after the calibration."""
        channels, height, width = self.shape
        return 2 * channels * height * width


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreSpec:
    """The request for a store."""

    dataset: DatasetIdentity
    teacher: dict[str, Any]  # Teacher.identity(): name, weights digest, precision, normalisation, ...
    views: ViewPolicy
    seed: int
    targets: dict[str, TargetSpec]
    inputs: str = REPLAY  # where a reader gets a view's pixels from, see crops.py
    unit_entries: int  # entries in a unit = rows in a shard, the same for every array

    def __post_init__(self) -> None:
        check_target_names(self.targets)
        for what, value, least, most in (
            ("images", self.dataset.images, 1, MAX_IMAGES),
            ("classes", len(self.dataset.class_names), 1, MAX_CLASSES),
            ("pixels of a crop", math.prod(self.views.crop_size), 1, MAX_CROP_PIXELS),
            ("the seed", self.seed, 0, MAX_SEED),
        ):
            if not least <= value <= most:
                raise UsageError(f"{what} must be from {least} to {most}, got {value}")
        if not 1 <= self.unit_entries <= MAX_UNIT_ENTRIES:
            raise UsageError(f"unit entries must be from 1 to {MAX_UNIT_ENTRIES}, got {self.unit_entries}")
        if self.unit_bytes > MAX_UNIT_BYTES:
            fitting = MAX_UNIT_BYTES // self._row_bytes
            raise UsageError(
                f"a unit of {self.unit_entries} entries takes {self.unit_bytes / 2**30:.3g} GiB of memory,"
                f" more than {MAX_UNIT_BYTES / 2**30:.3g}",
                hint=f"--unit-entries {fitting} or less"
                if fitting
                else "choose fewer targets or smaller crops",
            )

    @property
    def key(self) -> str:
        """The sha256 (hex) of the spec's canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()

    @property
    def name(self) -> str:
        """The folder of this store under a home: readable, and unique by the key."""
        readable = f"{self.dataset.name}-{self.dataset.split}-{self.teacher['name']}"
        return "".join(c if c.isalnum() or c in "-_." else "_" for c in readable) + f"-{self.key[:12]}"

    @property
    def unit_bytes(self) -> int:
        """Bytes of the rows of a full unit before compression."""
        return self.rows_at_once * self._row_bytes

    @property
    def rows_at_once(self) -> int:
        """Entries of the largest unit."""
        return min(self.unit_entries, self.dataset.images)

    @property
    def crop_packings(self) -> dict[str, Packing]:
        """The arrays of stored crops and labels; empty if inputs are replayed."""
        return {} if self.inputs == REPLAY else crop_packings(self.views.crop_size)

    @property
    def input_packings(self) -> dict[str, Packing]:
        """The arrays of inputs: views, then crops. A unit's first objects belong to them."""
        views = Packing(dtype="int32", shape=(len(ENTRY_COLUMNS),), axes=("column",), shuffle="shuffle")
        return {VIEWS: views, **self.crop_packings}

    def packings(self, codecs: Mapping[str, "Codec"]) -> dict[str, Packing]:
        """All arrays of a pass with these codecs, inputs first."""
        targets = {name: codecs[name].packing(target.shape) for name, target in sorted(self.targets.items())}
        return {**self.input_packings, **targets}

    @property
    def _row_bytes(self) -> int:
        """Bytes of one entry before compression."""
        return sum(raw_row_bytes(self.targets, self.crop_packings))

    @property
    def units_per_pass(self) -> int:
        """Units in a pass; the last one may be short."""
        return -(-self.dataset.images // self.unit_entries)

    def unit_rows(self, unit: int) -> range:
        """The positions in a pass that unit `unit` contains; the last unit may be short."""
        start = unit * self.unit_entries
        return range(start, min(start + self.unit_entries, self.dataset.images))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values. The key is a digest of them, so this format must not change."""
        dataset = self.dataset
        return {
            "format": FORMAT_VERSION,
            "dataset": {
                "name": dataset.name,
                "split": dataset.split,
                "images": dataset.images,
                "fingerprint": dataset.fingerprint,
                "class_names": list(dataset.class_names),
            },
            "teacher": self.teacher,
            "views": self.views.to_dict(),
            "seed": self.seed,
            "inputs": self.inputs,
            "targets": {
                name: {"codec": t.codec, "shape": list(t.shape)} for name, t in sorted(self.targets.items())
            },
            "unit_entries": self.unit_entries,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "StoreSpec":
        """The inverse of to_dict. Raises StoreDamagedError for a malformed spec or another format."""
        if fields.get("format") != FORMAT_VERSION:
            raise StoreDamagedError(
                f"the store has format {fields.get('format')!r}; this kdcache reads format {FORMAT_VERSION}",
                hint="upgrade kdcache: pip install -U kdcache",
            )
        try:
            return cls(
                dataset=_dataset_from_dict(fields["dataset"]),
                teacher={**fields["teacher"], "name": str(fields["teacher"]["name"])},
                views=ViewPolicy.from_dict(fields["views"]),
                seed=int(fields["seed"]),
                inputs=canonical_inputs(fields["inputs"]),
                targets={name: _target_from_dict(target) for name, target in fields["targets"].items()},
                unit_entries=int(fields["unit_entries"]),
            )
        except (*MALFORMED, UsageError) as error:
            raise StoreDamagedError(f"the store's spec is malformed: {short(error)}") from None

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "StoreSpec":
        """The inverse of canonical_json(to_dict()). Raises StoreDamagedError, which names `where`."""
        spec = cls.from_dict(parse_json(data, where, dict))
        try:
            require_same_text(canonical_json(spec.to_dict()), data)
        except MALFORMED as error:
            raise StoreDamagedError(f"{where} is not a spec: {error}") from None
        return spec

    def differences(self, other: "StoreSpec") -> list[str]:
        """One line `field: mine, theirs` for every field that differs; nested fields have dotted names."""
        return _differences("", self.to_dict(), other.to_dict())


def check_target_names(names: Collection[str]) -> None:
    """Raises UsageError for none, or for one that is not in view.TARGETS."""
    if not names:
        raise UsageError("no target given", hint=f"one or more of: {', '.join(TARGETS)}")
    if unknown := sorted(set(names) - set(TARGETS)):
        raise unknown_name("target", unknown[0], TARGETS)


def canonical_json(value: Any) -> bytes:
    """The one JSON text for a value: sorted keys, no spaces, no NaN. All digests are taken over it."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def default_unit_entries(targets: Mapping[str, TargetSpec], stored: Mapping[str, Packing]) -> int:
    """Entries in a unit: 1 to 64, so that the largest shard has at most 64 MiB before compression.

    `stored` are the arrays of stored crops, if there are any.
    """
    largest = max(raw_row_bytes(targets, stored))
    return max(1, min(_DEFAULT_UNIT_ENTRIES, _SHARD_BYTES // largest))


def raw_row_bytes(targets: Mapping[str, TargetSpec], stored: Mapping[str, Packing]) -> list[int]:
    """Bytes of one entry in each array, before compression."""
    crops = [math.prod(packing.shape) for packing in stored.values()]  # uint8
    return [*(target.raw_bytes for target in targets.values()), *crops]


def short(error: Exception) -> str:
    """The text of an error about an untrusted value, in one line of limited length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _dataset_from_dict(fields: Mapping[str, Any]) -> DatasetIdentity:
    return DatasetIdentity(
        name=str(fields["name"]),
        split=str(fields["split"]),
        images=int(fields["images"]),
        fingerprint=str(fields["fingerprint"]),
        class_names=tuple(str(name) for name in fields["class_names"]),
    )


def _target_from_dict(fields: Mapping[str, Any]) -> TargetSpec:
    channels, height, width = (int(n) for n in fields["shape"])
    if min(channels, height, width) < 1:
        raise ValueError(f"target of shape {fields['shape']}")
    return TargetSpec(codec=canonical_request(fields["codec"]), shape=(channels, height, width))


def _differences(prefix: str, mine: Any, theirs: Any) -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return [
            line
            for key in sorted(mine.keys() | theirs.keys())
            for line in _differences(f"{prefix}.{key}".lstrip("."), mine.get(key), theirs.get(key))
        ]
    return [] if mine == theirs else [f"{prefix}: {_short(mine)}, {_short(theirs)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
