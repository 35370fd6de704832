"""Contest: what a comparison was asked, and the runs that this makes, in their order.

    OUT/comparison.json      the contest
    OUT/attempts.jsonl       a line for every process that trained: run, seconds, exit code, error
    OUT/runs/NAME/           a folder of `kdcache distill` for every run
    OUT/standings.json       what came of it (standings.py), with standings.csv, report.md, figures/ and report.html

Two clocks: `time` gives every contender the same seconds of training, `steps` the same number of steps. A rung is one
length on one clock; the steps of a rung are, where nobody named them, those that the baseline reached in the time.

Seeds are the outer loop, so that an early end leaves whole rounds. Within a round (a seed on a rung) the contenders run
in an order drawn anew, so that a machine that slows down slows all of them alike. The baseline's first runs are
repeated at the very end: what differs between the two is the machine.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from kdcache.cache.errors import UsageError
from kdcache.cache.shuffle import permutation
from kdcache.distill.config import FREE_ON_RESUME, TrainConfig, option_of
from kdcache.distill.methods import own_options

CLOCKS = ("time", "steps")
BASELINE = "none"

COMPARISON = "comparison.json"
ATTEMPTS = "attempts.jsonl"
RUNS = "runs"

_BY_RUN = {"method", "source", "fresh_views", "passes", "steps", "epochs", "budget_seconds", "seed", "out"}
_SHARED = {option.name for option in fields(TrainConfig)} - _BY_RUN


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A row of the standings: a method, and where its views and its targets come from."""

    method: str
    source: str = "cache"
    fresh_views: bool = False
    passes: int | None = None  # of the store; None for all

    @property
    def name(self) -> str:
        """Short and unique, also as a part of a file's name: `logit`, `none-bank`, `logit-online`, `logit-views-4`."""
        words = [self.method]
        if self.source == "online":
            words.append("online")
        if self.source == "none" and not self.fresh_views:
            words.append("bank")
        if self.passes is not None:
            words.append(f"views-{self.passes}")
        return "-".join(words)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of TrainConfig."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """One length on one clock."""

    clock: str
    budget_s: float | None = None  # of training; for steps: of the baseline's run whose steps are taken
    steps: int | None = None  # as asked; None where the clock says, or the baseline

    @property
    def name(self) -> str:
        if self.clock == "time":
            return f"time-{self.budget_s:g}s"
        return f"steps-{self.steps}" if self.steps is not None else f"steps-of-{self.budget_s:g}s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One run of a contest."""

    contender: Contender
    rung: Rung
    seed: int
    again: bool = False  # a repetition of the baseline

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.rung.name}-{self.contender.name}-seed-{self.seed}" + (
            "-repeated" if self.again else ""
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """All that was asked.

    Raises:
        UsageError: a contender, a rung or a seed twice, or none of them.
    """

    contenders: tuple[Contender, ...]  # the first one is the baseline
    rungs: tuple[Rung, ...]  # those of the time before those of steps
    seeds: tuple[int, ...]
    # Fields of TrainConfig that all runs share; a method takes weights of its own terms alone.
    run: Mapping[str, Any]
    store_key: str  # of the store that all runs share, see spec.StoreSpec
    processes: int = 1  # of every run
    teacher: Mapping[str, Any] = field(default_factory=dict)
    """What is known of it: name, miou, pixel_accuracy, and build_s of each pass of the store."""

    def __post_init__(self) -> None:
        parts: dict[str, list[Any]] = {
            "contenders": [contender.name for contender in self.contenders],
            "rungs": [rung.name for rung in self.rungs],
            "seeds": list(self.seeds),
        }
        for what, names in parts.items():
            if not names or len(set(names)) < len(names):
                raise UsageError(f"a comparison needs {what}, each once; got {names}")

    @property
    def baseline(self) -> Contender:
        return self.contenders[0]

    @property
    def clocks(self) -> list[str]:
        return list(dict.fromkeys(rung.clock for rung in self.rungs))

    def starts(self) -> list[Start]:
        """All runs, in their order."""
        rounds = [(seed, rung) for seed in self.seeds for rung in self.rungs]
        inside = [
            Start(contender=self.contenders[index], rung=rung, seed=seed)
            for seed, rung in rounds
            for index in permutation(f"{seed} {rung.name}", len(self.contenders)).tolist()
        ]
        repeated = [rung for rung in self.rungs if rung.clock == self.clocks[0]]
        return inside + [
            Start(contender=self.baseline, rung=rung, seed=self.seeds[0], again=True) for rung in repeated
        ]

    def config(self, start: Start, out: str, steps: int | None = None) -> TrainConfig:
        """The run of a start, in the folder `out`.

        Args:
            steps: those of a rung of steps.

        Raises:
            UsageError: the method, the store and the options do not go together.
        """
        length = {"budget_seconds": start.rung.budget_s} if start.rung.clock == "time" else {"steps": steps}
        shared = own_options(start.contender.method, self.run)
        return TrainConfig.from_dict(
            {**shared, **start.contender.fields, **length, "seed": start.seed, "out": out}
        )

    def command(self) -> str:
        """The command line that asks for it, but for its folder; options that have their defaults are left out."""
        methods = dict.fromkeys(c.method for c in self.contenders if c.source != "online")
        online = [c.method for c in self.contenders if c.source == "online"]
        views = dict.fromkeys(str(c.passes) for c in self.contenders if c.passes is not None)
        budgets = [f"{rung.budget_s:g}s" for rung in self.rungs if rung.clock == "time"]
        steps = [str(rung.steps) for rung in self.rungs if rung.steps is not None]
        lists = {
            "--methods": methods,
            "--online": online,
            "--views": views,
            "--budget": budgets,
            "--steps": steps,
            "--clock": self.clocks,
        }
        words = ["kdcache", "compare"]
        for option, names in lists.items():
            words += [option, ",".join(names)] if names else []
        words += ["--seeds", str(len(self.seeds)), "--processes", str(self.processes)]
        if not any(c.source == "none" and c.fresh_views for c in self.contenders):
            words.append("--no-fresh-views")
        shared = {**self.run, "method": BASELINE, "source": "none", "steps": 1, "out": "OUT"}
        said = shlex.split(TrainConfig.from_dict(shared).command())
        for option in ("--method", "--source", "--steps", "--out"):
            at = said.index(option)
            del said[at : at + 2]
        return shlex.join([*words, *said[2:]])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises UsageError for what is no contest."""
        try:
            return cls(
                contenders=tuple(Contender(**contender) for contender in values["contenders"]),
                rungs=tuple(Rung(**rung) for rung in values["rungs"]),
                seeds=tuple(values["seeds"]),
                run=values["run"],
                store_key=values["store_key"],
                processes=values["processes"],
                teacher=values["teacher"],
            )
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{COMPARISON} does not describe a comparison: {error}", hint="name another folder"
            ) from None

    def differences(self, other: "Contest") -> list[str]:
        """Lines `what: mine, theirs`, for what decides the outcome and differs."""
        mine, theirs = self._identity(), other._identity()
        return [
            f"{name}: {mine.get(name)}, {theirs.get(name)}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]

    def _identity(self) -> dict[str, Any]:
        options = {field.name: self.run.get(field.name, field.default) for field in fields(TrainConfig)}
        run = {option_of(n): v for n, v in options.items() if n not in FREE_ON_RESUME and n in _SHARED}
        return {
            "methods": ",".join(contender.name for contender in self.contenders),
            "lengths": ",".join(rung.name for rung in self.rungs),
            "seeds": ",".join(map(str, self.seeds)),
            "store": self.store_key,
            "--processes": self.processes,
            **run,
        }


def make_contenders(
    methods: Sequence[str], *, online: Sequence[str] = (), views: Sequence[int] = (), fresh_views: bool = True
) -> tuple[Contender, ...]:
    """The rows of a comparison, the baseline first: `none` where it is among the methods, else the first one.

    Args:
        online: methods whose teacher runs along too, over fresh views: the limit of what views can bring.
        views: numbers of passes; each method from the cache is confined to each. Empty for all passes alone.
        fresh_views: `none` draws fresh views, and a second row of it has the store's. Else the store's alone.
    """
    rows = []
    for method in sorted(methods, key=lambda name: name != BASELINE):
        if method == BASELINE and fresh_views:
            rows.append(Contender(method=method, source="none", fresh_views=True))
        if method == BASELINE:
            rows.append(Contender(method=method, source="none"))
        else:
            rows += [Contender(method=method, passes=passes) for passes in views or (None,)]
    rows += [Contender(method=method, source="online", fresh_views=True) for method in online]
    return tuple(rows)


def make_rungs(
    budgets_s: Sequence[float], steps: Sequence[int], clocks: Sequence[str] = ()
) -> tuple[Rung, ...]:
    """The ladder. Without `clocks`, all that the lengths allow.

    Args:
        steps: of the clock of steps; empty for those that the baseline reaches in each budget.

    Raises:
        UsageError: a clock without a length, or a length without a clock.
    """
    clocks = clocks or (CLOCKS if budgets_s else ("steps",))
    if not budgets_s and not steps:
        raise UsageError(
            "nothing says how long a comparison is", hint="--budget 1h, --budget 30m,1h,2h or --steps 2000"
        )
    if ("time" in clocks) != bool(budgets_s) or (steps and "steps" not in clocks):
        raise UsageError(
            f"--clock {','.join(clocks)} does not go with the lengths given",
            hint="the clock time takes --budget; steps takes --steps, or the baseline's in each budget of the clock time",
        )
    timed = [Rung(clock="time", budget_s=budget_s) for budget_s in budgets_s]
    counted = [Rung(clock="steps", steps=count) for count in steps] or [
        Rung(clock="steps", budget_s=budget_s) for budget_s in budgets_s
    ]
    return (*timed, *(counted if "steps" in clocks else ()))


def find_steps(
    contest: Contest,
    rung: Rung,
    done: Mapping[str, int],  # steps by the name of a finished run
) -> int | None:
    """The steps of a rung of steps; None while the baseline's run that says them is not finished."""
    if rung.steps is not None:
        return rung.steps
    timed = Rung(clock="time", budget_s=rung.budget_s)
    return done.get(Start(contender=contest.baseline, rung=timed, seed=contest.seeds[0]).name)
