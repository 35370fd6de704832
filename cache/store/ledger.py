"""The ledger: one commit record for each unit, written last. Only what the ledger names exists.

A record lists the objects of its unit by array, with size and sha256. Their paths follow from pass, unit and array, and
are never read from a record. Records are created once: a repair adds a record of the next generation, and the highest
generation counts. The manifest of a pass lists all its units in one object. Every record contains its own digest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdcache.cache.errors import StoreDamagedError
from kdcache.cache.storage.documents import MALFORMED, parse_json, require_same_text
from kdcache.cache.storage.objects import ObjectRecord, sha256
from kdcache.cache.store.spec import canonical_json, short


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """One committed unit."""

    pass_index: int
    unit: int
    entries: int
    calibration: str  # digest
    objects: Mapping[str, ObjectRecord]  # by array; always includes "views"
    generation: int = 0
    built: Mapping[str, Any] = field(default_factory=dict)  # versions, batch, threads, device, seconds, time

    def to_dict(self, *, built: bool = True) -> dict[str, Any]:
        """The fields as JSON values; without `built` only those that are equal for every builder of the unit."""
        fields: dict[str, Any] = {
            "pass": self.pass_index,
            "unit": self.unit,
            "entries": self.entries,
            "calibration": self.calibration,
            "objects": {array: record.to_dict() for array, record in sorted(self.objects.items())},
            "generation": self.generation,
        }
        return {**fields, "built": dict(self.built)} if built else fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Commit":
        """The inverse of to_dict. Raises one of documents.MALFORMED for a malformed record."""
        return cls(
            pass_index=int(fields["pass"]),
            unit=int(fields["unit"]),
            entries=int(fields["entries"]),
            calibration=str(fields["calibration"]),
            objects={
                str(array): ObjectRecord.from_dict(record) for array, record in fields["objects"].items()
            },
            generation=int(fields["generation"]),
            built=dict(fields.get("built", {})),
        )

    def to_bytes(self) -> bytes:
        """The record as it is stored: canonical JSON with its own digest."""
        return _sealed(self.to_dict())


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """All units of a complete pass, in order."""

    pass_index: int
    commits: tuple[Commit, ...]

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the stored bytes. A run pins it, to notice repairs."""
        return sha256(self.to_bytes())

    @property
    def bytes_by_array(self) -> dict[str, int]:
        """Stored bytes of each array in this pass."""
        arrays = self.commits[0].objects
        return {array: sum(commit.objects[array].size for commit in self.commits) for array in arrays}

    def to_bytes(self) -> bytes:
        """The manifest as it is stored. Without machines and times, so that every builder writes the same bytes."""
        return _sealed(
            {"pass": self.pass_index, "units": [commit.to_dict(built=False) for commit in self.commits]}
        )


def read_commit(data: bytes, where: str) -> Commit:
    """The commit record in `data`. Raises StoreDamagedError, which names `where`, for a malformed one."""
    fields = parse_json(data, where, dict)
    try:
        commit = Commit.from_dict(fields)
        require_same_text(commit.to_bytes(), data)
    except MALFORMED as error:
        raise StoreDamagedError(f"{where} is not a commit record: {short(error)}") from None
    return commit


def read_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`. Raises StoreDamagedError, which names `where`, for a malformed one."""
    fields = parse_json(data, where, dict)
    try:
        commits = tuple(Commit.from_dict(unit) for unit in fields["units"])
        if not commits or [commit.unit for commit in commits] != list(range(len(commits))):
            raise ValueError("its units are not 0, 1, 2, ...")
        manifest = Manifest(pass_index=int(fields["pass"]), commits=commits)
        require_same_text(manifest.to_bytes(), data)
    except MALFORMED as error:
        raise StoreDamagedError(f"{where} is not a manifest: {short(error)}") from None
    return manifest


def _sealed(fields: Mapping[str, Any]) -> bytes:
    """Canonical JSON with its own sha256 as one more field. Nothing else records that a record is complete."""
    return canonical_json({**fields, "seal": sha256(canonical_json(fields))})
