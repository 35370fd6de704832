"""The calibration: what a store's request leaves open, measured once and used by every builder.

It contains the fitted codecs and what they lose, the check of the teacher against the labels, and a few canary crops.
The digests of the canaries tell a joining builder at once if its image libraries differ from those of the first
builder.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.documents import MALFORMED, parse_json, require_same_text
from kdcache.cache.storage.objects import sha256
from kdcache.cache.store.spec import canonical_json, short

if TYPE_CHECKING:
    from kdcache.cache.codecs.codec import Codec

_DESCRIBED = ("step", "components")  # fields of a codec's summary that `describe` shows
_MEASURED = {
    "bytes_per_value": "{:.3f} bytes a value",
    "kl": "KL {:.1e}",
    "agreement": "same class in {:.2%}",
    "relative_error": "relative error {:.1e}",
}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Immutable. Its digest is in the metadata of every array and in every commit."""

    spec_key: str
    codecs: Mapping[str, "Codec"]  # by target
    canaries: tuple[tuple[int, ...], ...]  # rows (replay.entry_row) of the first entries of pass 0
    teacher_check: Mapping[str, Any]  # sanity.TeacherCheck.to_dict()
    input_bytes: Mapping[str, int]  # by array of inputs: stored bytes of an entry
    # By target: what its codec loses on held-out crops, see fidelity.py.
    fidelity: Mapping[str, Mapping[str, Any]]

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) of the stored bytes."""
        return sha256(self.to_bytes())

    def describe(self, target: str) -> str:
        """One line: the codec of a target, and what it loses on the held-out crops."""
        codec = ", ".join(
            f"{name} {value:g}" for name, value in self.codecs[target].summary().items() if name in _DESCRIBED
        )
        lost = self.fidelity.get(target, {})
        measured = [text.format(lost[name]) for name, text in _MEASURED.items() if lost.get(name) is not None]
        return f"{self.codecs[target].name} {codec}".strip() + "".join(f", {text}" for text in measured)

    def to_bytes(self) -> bytes:
        """The document as it is stored, in canonical JSON."""
        return canonical_json(
            {
                "spec": self.spec_key,
                "codecs": {target: codec.to_dict() for target, codec in self.codecs.items()},
                "canaries": [list(row) for row in self.canaries],
                "teacher_check": dict(self.teacher_check),
                "input_bytes": dict(self.input_bytes),
                "fidelity": {target: dict(lost) for target, lost in self.fidelity.items()},
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Calibration":
        """The inverse of to_bytes. Raises StoreDamagedError for a malformed document."""
        from kdcache.cache.codecs.registry import codec_from_dict  # torch

        fields = parse_json(data, "the store's calibration", dict)
        try:
            calibration = cls(
                spec_key=str(fields["spec"]),
                codecs={str(target): codec_from_dict(codec) for target, codec in fields["codecs"].items()},
                canaries=tuple(tuple(int(word) for word in row) for row in fields["canaries"]),
                teacher_check=dict(fields["teacher_check"]),
                input_bytes={str(array): int(size) for array, size in fields["input_bytes"].items()},
                fidelity={str(target): dict(lost) for target, lost in fields["fidelity"].items()},
            )
            calibration._check()
            require_same_text(calibration.to_bytes(), data)
        except MALFORMED as error:
            raise StoreDamagedError(f"the store's calibration is malformed: {short(error)}") from None
        return calibration

    def _check(self) -> None:
        """Raises ValueError for numbers that a calibration cannot have."""
        if not all(-(2**31) <= word < 2**31 for row in self.canaries for word in row):
            raise ValueError("a canary is not a row of views")
        if not all(0 <= size < 2**40 for size in self.input_bytes.values()):
            raise ValueError("impossible sizes of inputs")
        for lost in self.fidelity.values():
            for value in (lost.get(name) for name in _MEASURED):
                if value is not None and (not isinstance(value, int | float) or not math.isfinite(value)):
                    raise ValueError(f"a fidelity of {str(value)[:20]!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSummary:
    """What a calibration says without its codecs, whose classes import torch: enough for a list of stores."""

    digest: str  # sha256 (hex) of the stored bytes, as Calibration.digest
    codecs: Mapping[str, str]  # names, by target
    teacher_check: Mapping[str, Any]

    @classmethod
    def from_bytes(cls, data: bytes, spec_key: str) -> "CalibrationSummary":
        """Raises StoreDamagedError for bytes that are not the calibration of that spec; codecs' tables are not checked."""
        fields = parse_json(data, "the store's calibration", dict)
        try:
            require_same_text(canonical_json(fields), data)
            if fields["spec"] != spec_key:
                raise ValueError("it belongs to another spec")
            return cls(
                digest=sha256(data),
                codecs={str(target): str(codec["name"]) for target, codec in fields["codecs"].items()},
                teacher_check=dict(fields["teacher_check"]),
            )
        except MALFORMED as error:
            raise StoreDamagedError(f"the store's calibration is unreadable: {short(error)}") from None
