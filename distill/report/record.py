"""What a run's folder says, parsed: for reports and comparisons, during the run and after it."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdcache.cache.errors import NotFoundError
from kdcache.distill import runfolder
from kdcache.distill.clock import PARTS
from kdcache.distill.config import TrainConfig
from kdcache.distill.units import duration_text

# Of a line of kind "train": all other numbers are loss terms.
_NOT_TERMS = frozenset({"kind", "step", "loss", "lr", "step_s", "wait_s", "training_s"})

CLOSE_MIOU = 0.02
"""A teacher that is not this much better than the run without one has little to give."""


FEWEST_STEPS = 100
"""A run of fewer steps is too short to judge a method by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """The evaluations of one run."""

    name: str
    steps: Sequence[int]
    seconds: Sequence[float]  # of training alone
    miou: Sequence[float]  # fractions


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """One line of a comparison. Times are of training alone; a score is None where there is none."""

    name: str
    method: str
    source: str
    student: str
    length: str  # as the user gave it
    steps: int
    planned_steps: int | None  # None where a budget was not yet timed
    training_s: float
    step_s: float  # median
    wait_share: float  # of training time, waiting for data
    miou: float | None
    pixel_accuracy: float | None
    complete: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_short(self) -> bool:
        """Too few steps for a score with decimals."""
        return self.steps < FEWEST_STEPS

    @property
    def ended_by_clock(self) -> bool:
        """The time was up before the learning rate had reached its last value."""
        return self.complete and self.planned_steps is not None and self.steps < self.planned_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """The files of a run's folder, parsed."""

    folder: Path
    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Any]  # what the run is pinned to
    environment: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    result: Mapping[str, Any] | None  # scores.json; None before the end of the run

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a run's folder, finished or not.

        Raises:
            NotFoundError: the folder contains no run.
            UsageError: one of its files is damaged.
        """
        if not (folder / runfolder.CONFIG).is_file():
            raise NotFoundError(
                f"no run in {folder}: there is no {runfolder.CONFIG}",
                hint="name a folder that distill wrote with --out; kdcache distill --help",
            )
        return cls(
            folder=folder,
            name=folder.resolve().name,
            config=runfolder.read_json(folder / runfolder.CONFIG),
            inputs=_read_if_there(folder / runfolder.INPUTS) or {},
            environment=_read_if_there(folder / runfolder.ENVIRONMENT) or {},
            lines=list(_read_lines(folder / runfolder.METRICS)),
            result=_read_if_there(folder / runfolder.SCORES),
        )

    @property
    def scores(self) -> Mapping[str, Any] | None:
        """`Scores.to_dict()` of the last checkpoint."""
        return self.result["scores"] if self.result else None

    @property
    def dataset(self) -> str:
        """As the store or `--dataset` has it."""
        return str(self.inputs.get("dataset", {}).get("name") or self.config.get("dataset") or "unknown")

    @property
    def teacher(self) -> str | None:
        """The teacher's name; None where none was asked."""
        asked = self.config["source"] != "none" and self.inputs.get("teacher")
        return asked["name"] if asked else None

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["kind"] == kind]

    def terms(self) -> dict[str, list[float]]:
        """Loss terms over the lines of training, the loss first; empty before the first line."""
        lines = self.of_kind("train")
        names = ["loss", *loss_terms(lines[0])] if lines else []
        return {name: [float(line[name]) for line in lines] for name in names}

    def curve(self) -> Curve:
        """The evaluations, at the training time that each one recorded.

        A line of an older run may lack it: then the time of the last line of training before it is taken.
        """
        lines = [line for line in self.of_kind("eval") if line.get("miou") is not None]
        times = {line["step"]: float(line["training_s"]) for line in self.of_kind("train")}
        return Curve(
            name=self.name,
            steps=[line["step"] for line in lines],
            seconds=[float(line.get("training_s", _seconds_at(line["step"], times))) for line in lines],
            miou=[line["miou"] for line in lines],
        )

    def profile(self) -> dict[str, float]:
        """Seconds of a step by its parts, in clock.PARTS' words; empty before the first line of metrics."""
        lines = self.of_kind("profile")
        steps = sum(line["steps"] for line in lines)
        return {
            words: sum(line[part] * line["steps"] for line in lines) / steps
            for part, words in PARTS.items()
            if lines
        }

    def seconds_of(self, kind: str) -> float:
        """Seconds outside of the account that lines of a kind, "eval" or "save", say they took."""
        return float(sum(line.get("seconds", 0.0) for line in self.of_kind(kind)))

    def repeat_command(self) -> str:
        """The command line that repeats the run; a budget is replaced by the steps that it allowed."""
        summary = self.summary()
        asked = TrainConfig.from_dict(self.config)
        if asked.budget_seconds is not None and summary.planned_steps is not None:
            asked = replace(asked, budget_seconds=None, steps=summary.planned_steps)
        command = replace(asked, out=f"{asked.out}-again").command()
        processes = self.environment.get("processes", 1)
        if processes > 1:
            arguments = command.removeprefix("kdcache")
            command = f"accelerate launch --num_processes {processes} -m kdcache.cli{arguments}"
        return command

    def summary(self) -> RunSummary:
        lines = self.of_kind("train")
        last = lines[-1] if lines else {"step": 0, "training_s": 0.0}
        result = self.result or {"steps": last["step"], "training_s": last["training_s"]}
        timed = self.of_kind("budget")
        step_s, wait_s = ([line[name] for line in lines] for name in ("step_s", "wait_s"))
        scores = self.scores or {}
        return RunSummary(
            name=self.name,
            method=self.config["method"],
            source=self.config["source"],
            student=self.config["student"],
            length=_length(self.config),
            steps=result["steps"],
            planned_steps=result.get("planned_steps", timed[-1]["total_steps"] if timed else None),
            training_s=result["training_s"],
            step_s=statistics.median(step_s) if lines else 0.0,
            wait_share=sum(wait_s) / max(sum(step_s), 1e-9),
            miou=scores.get("miou"),
            pixel_accuracy=scores.get("pixel_accuracy"),
            complete=self.result is not None,
        )


def read_runs(folders: Sequence[str | Path]) -> list[RunRecord]:
    """Several runs; where two folders have the same name, both runs are called by their path as given."""
    runs = [RunRecord.read(Path(folder)) for folder in folders]
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def weak_teacher(teacher_miou: float, baseline_miou: float) -> list[str]:
    """A caution where the teacher has little to give."""
    if teacher_miou - baseline_miou >= CLOSE_MIOU:
        return []
    caution = (
        f"The teacher is less than {100 * CLOSE_MIOU:.0f} points of mIoU above the baseline ({100 * teacher_miou:.2f} % "
        f"against {100 * baseline_miou:.2f} %): this comparison says little about distillation."
    )
    return [caution]


def loss_terms(line: Mapping[str, Any]) -> list[str]:
    """Names of the loss terms in a line of kind "train" or "gradnorm"."""
    return [name for name in line if name not in _NOT_TERMS]


def _length(config: Mapping[str, Any]) -> str:
    if config.get("budget_seconds") is not None:
        return duration_text(config["budget_seconds"])
    unit = "epochs" if config.get("epochs") is not None else "steps"
    return f"{config.get(unit)} {unit}"


def _seconds_at(step: int, times: Mapping[int, float]) -> float:
    """Training time at a step, by the last line of training that is not later."""
    return max((seconds for at, seconds in times.items() if at <= step), default=0.0)


def _read_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Whole lines; the last one of a killed run may be half, and is left out."""
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                parsed = json.loads(line)
            except ValueError:
                continue
            if isinstance(parsed, dict) and "kind" in parsed and "step" in parsed:
                yield parsed


def _read_if_there(path: Path) -> dict[str, Any] | None:
    return runfolder.read_json(path) if path.is_file() else None
