"""Running a contest: one run after another, each in processes of its own, each from its last checkpoint.

A run that fails is recorded with its one line, and the next one starts. The command and the processes that train share a
lock on the folder: if a comparison was killed while its last run still trains, a second comparison is refused until that
run has ended, so that nothing is trained twice at once.
"""

import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdcache.cache.errors import KDCacheError, UsageError
from kdcache.distill import runfolder
from kdcache.distill.compare.contest import ATTEMPTS, COMPARISON, RUNS, Contest, Start, find_steps
from kdcache.distill.config import TrainConfig

LOGS = "logs"
"""What each run said on stderr, a file a run."""

_LOCK = ".lock"
_ENDING_S = 20.0  # for a run to end when asked, before it is killed
_OF_DISTILL = "KDCACHE_DISTILL_"  # variables that would change what a run is asked


def read_contest(folder: Path, asked: Contest) -> Contest:
    """The comparison in the folder, extended by what is asked. Writes nothing.

    Raises:
        UsageError: the folder contains another comparison, or something else.
    """
    path = folder / COMPARISON
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise UsageError(
                f"--out {folder} contains files that are not a comparison's", hint="name a new folder"
            )
        return asked
    held = Contest.from_dict(runfolder.read_json(path))
    if lines := held.differences(asked):
        raise UsageError(
            f"--out {folder} contains another comparison; what differs (there, asked):\n  "
            + "\n  ".join(lines),
            hint="add methods, seeds or lengths and keep all else, or name another folder",
        )
    return held.extended(asked)


def enter(folder: Path, asked: Contest) -> Contest:
    """Record what is asked, on top of what the folder contains already; returns both together.

    Raises:
        UsageError: the folder contains another comparison, or something else, or a comparison is running there.
        KDCacheError: making the folder fails.
    """
    contest = read_contest(folder, asked)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KDCacheError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR") from None
    with _lock(folder):
        runfolder.write_json(folder / COMPARISON, contest.to_dict())
    return contest


def is_done(folder: Path, start: Start) -> bool:
    """Whether the run of a start is complete."""
    return (folder / RUNS / start.name / runfolder.SCORES).exists()


def run_contest(folder: Path, contest: Contest, report: Callable[[str], None]) -> None:
    """Every run that is not complete yet, failed ones once more, in the contest's order.

    Raises:
        UsageError: a comparison is running in this folder.
        KeyboardInterrupt: also on SIGTERM; the run's last checkpoint is kept.
    """
    with _lock(folder) as lock, _interrupted_by_sigterm():
        done: dict[str, int] = {}
        starts = contest.starts()
        for number, start in enumerate(starts, start=1):
            out = folder / RUNS / start.name
            if not is_done(folder, start):
                report(f"run {number} of {len(starts)}: {start.name}")
                attempt = _attempt(folder, contest, start, done, lock, report)
                _record(folder, attempt)
                if attempt["error"]:
                    report(f"{start.name} failed: {attempt['error']}")
            if is_done(folder, start):
                # A finished run needs its training state no longer, and hundreds of them would fill a disk.
                shutil.rmtree(out / runfolder.CHECKPOINT, ignore_errors=True)
                done[start.name] = runfolder.read_json(out / runfolder.SCORES)["steps"]


def run_command(config: TrainConfig, processes: int) -> list[str]:
    """The command that starts a run, or resumes it."""
    python = [sys.executable, "-m"]
    if processes > 1:
        python += ["accelerate.commands.launch", "--num_processes", str(processes), "-m"]
    return [*python, "kdcache.cli", *shlex.split(config.command())[1:], "--resume", "--json"]


def _attempt(
    folder: Path,
    contest: Contest,
    start: Start,
    done: dict[str, int],
    lock: int,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """One process after another failed or ended: a line for attempts.jsonl."""
    attempt: dict[str, Any] = {
        "run": start.name,
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": 0.0,
        "exit_code": None,
        "error": None,
        "hint": None,
    }
    steps = find_steps(contest, start.rung, done) if start.rung.clock == "steps" else None
    if start.rung.clock == "steps" and steps is None:
        reason = f"its steps are unknown: no finished run of {contest.baseline.name} on that budget"
        return {**attempt, "error": reason}
    try:
        config = contest.config(start, str(folder / RUNS / start.name), steps)
    except KDCacheError as error:
        return {**attempt, "exit_code": error.exit_code, "error": str(error), "hint": error.hint}
    began = time.monotonic()
    try:
        ended = _train(folder, start.name, run_command(config, contest.processes), lock, report)
    except KeyboardInterrupt:
        _record(folder, {**attempt, "wall_s": time.monotonic() - began})
        raise
    return {**attempt, **ended, "wall_s": time.monotonic() - began}


def _train(
    folder: Path, name: str, command: list[str], lock: int, report: Callable[[str], None]
) -> dict[str, Any]:
    """The exit code of a run's process, and why it failed where it did."""
    (folder / LOGS).mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OF_DISTILL)}
    with open(folder / LOGS / f"{name}.log", "a") as log:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            pass_fds=(lock,),
        )
        said: list[str] = []
        try:
            assert process.stderr is not None
            for line in process.stderr:
                log.write(line)
                log.flush()
                said = [*said[-20:], line.strip()]
                if not line.startswith("{"):
                    report(line.rstrip())
            code = process.wait()
        finally:
            _end(process)
    return {"exit_code": code, **(_reason(code, said) if code else {})}


def _end(process: subprocess.Popen[str]) -> None:
    """Nothing that was started outlives an interruption."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _reason(code: int, said: list[str]) -> dict[str, str | None]:
    """The error that the run printed as JSON, on one line, or the last thing that it said."""
    for line in said:
        try:
            error = json.loads(line)
            return {"error": error["message"].splitlines()[0], "hint": error["hint"]}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return {"error": f"ended with {ended}" + (f": {said[-1]}" if said else "")}


def _record(folder: Path, attempt: dict[str, Any]) -> None:
    with open(folder / ATTEMPTS, "a") as file:
        file.write(json.dumps(attempt) + "\n")
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """The descriptor of the lock, which lasts until every process that inherited it has ended."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"a comparison is running in {folder}, or the last run of a killed one",
            hint="wait until it has ended; its checkpoints are kept",
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a comparison as Ctrl-C does, together with the run in progress."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
