"""Common to all benchmarks: alternate the sides in one run, repeat, print a table, compare ratios with bounds."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `bound` is text such as ">= 0.95"; `holds` is True if the figure keeps it, None without a bound."""

    what: str
    value: float
    unit: str
    bound: str = ""
    holds: bool | None = None


def ratio(what: str, value: float, bound: str) -> Row:
    """A ratio compared with a bound, "<= x" or ">= x"."""
    sign, limit = bound.split()
    return Row(what, value, "", bound, value <= float(limit) if sign == "<=" else value >= float(limit))


def alternate(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Mapping[str, Callable[[], object]] | None = None,  # by side: work before it that is not timed
) -> dict[str, list[float]]:
    """Seconds of every side in each of `rounds` rounds, after one warm-up each. Each round starts with another side."""
    prepare = before or {}
    for name, run in sides.items():
        prepare.get(name, _nothing)()
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            prepare.get(name, _nothing)()
            synchronise()
            began = time.perf_counter()
            sides[name]()
            synchronise()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _nothing() -> None:
    pass


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round: a disturbance of a whole round slows both sides."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def machine() -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def finish(
    name: str, rows: Sequence[Row], seconds: Mapping[str, Sequence[float]], setting: str, *, as_json: bool
) -> int:
    """Print the rows. Returns the exit code: 1 if a row misses its bound."""
    if as_json:
        document = {"name": name, "machine": machine(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(document))
    else:
        print(f"{name}: {setting}")
        print(", ".join(f"{key} {value}" for key, value in machine().items()))
        width = max(len(name) for name in (*seconds, *(row.what for row in rows))) + 2
        print(f"\n{'seconds':<{width}}{'min':>10}{'median':>10}{'max':>10}")
        for side, values in seconds.items():
            numbers = (min(values), statistics.median(values), max(values))
            print(f"{side:<{width}}{''.join(f'{number:>10.4f}' for number in numbers)}")
        print()
        for row in rows:
            verdict = {None: "", True: "holds", False: "DOES NOT HOLD"}[row.holds]
            print(f"{row.what:<{width}}{row.value:>10.4g} {row.unit:<8}{row.bound:<9}{verdict}")
    return int(any(row.holds is False for row in rows))
