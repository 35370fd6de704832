"""A run of a comparison: its progress, why it failed, and where its time went."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.distill import runfolder
from kdcache.distill.compare.contest import ATTEMPTS, RUNS, Start
from kdcache.distill.report.record import RunRecord, RunSummary

COMPLETE, FAILED, UNFINISHED, WAITING = "complete", "failed", "unfinished", "waiting"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunAccount:
    """One run. Seconds add up those of all its processes, one after another; None before the run has begun."""

    start: Start
    folder: str  # from the comparison's
    status: str  # COMPLETE, FAILED, UNFINISHED or WAITING
    error: str | None  # one line, of a failed run
    hint: str | None  # what may help
    command: str | None  # repeats it
    training_s: float | None  # what a budget counts
    wait_s: float | None  # part of it: waiting for data
    evaluation_s: float | None  # not part of training_s; nor are the next three
    saving_s: float | None
    startup_s: float | None  # and winding down: processes, imports, opening, the report
    wall_s: float | None  # all of it
    summary: RunSummary | None
    record: RunRecord | None

    @property
    def miou(self) -> float | None:
        return self.summary.miou if self.summary and self.status == COMPLETE else None

    def to_dict(self) -> dict[str, Any]:
        times = ("training_s", "wait_s", "evaluation_s", "saving_s", "startup_s", "wall_s")
        summary = self.summary
        return {
            "name": self.start.name,
            "folder": self.folder,
            "contender": self.start.contender.name,
            "rung": self.start.rung.name,
            "seed": self.start.seed,
            "again": self.start.again,
            "status": self.status,
            "error": self.error,
            "hint": self.hint,
            "steps": summary.steps if summary else None,
            "planned_steps": summary.planned_steps if summary else None,
            "step_s": summary.step_s if summary else None,
            "miou": self.miou,
            "pixel_accuracy": summary.pixel_accuracy if summary else None,
            **{name: getattr(self, name) for name in times},
            "command": self.command,
        }


def read_attempts(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of attempts.jsonl by run; the last one of a killed comparison may be half, and is left out."""
    path = folder / ATTEMPTS
    attempts: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            attempt = json.loads(line)
        except ValueError:
            continue
        attempts.setdefault(attempt["run"], []).append(attempt)
    return attempts


def read_account(folder: Path, start: Start, attempts: Sequence[Mapping[str, Any]]) -> RunAccount:
    place = Path(RUNS, start.name)
    record = RunRecord.read(folder / place) if (folder / place / runfolder.CONFIG).is_file() else None
    summary = record.summary() if record else None
    error = attempts[-1]["error"] if attempts else None
    done = summary is not None and summary.complete
    status = COMPLETE if done else FAILED if error else UNFINISHED if record else WAITING
    wall_s = sum(attempt["wall_s"] for attempt in attempts) if attempts else None
    spent = {
        "training_s": summary.training_s if summary else None,
        "evaluation_s": record.seconds_of("eval") if record else None,
        "saving_s": record.seconds_of("save") if record else None,
    }
    known_s = sum(seconds for seconds in spent.values() if seconds is not None)
    return RunAccount(
        start=start,
        folder=place.as_posix(),
        status=status,
        error=None if done else error,
        hint=None if done or not attempts else attempts[-1]["hint"],
        command=record.repeat_command() if record else None,
        **spent,
        wait_s=summary.wait_share * summary.training_s if summary else None,
        startup_s=None if wall_s is None or record is None else max(0.0, wall_s - known_s),
        wall_s=wall_s,
        summary=summary,
        record=record,
    )
