"""Contest: what a comparison was asked, and the runs that this makes, in their order.

    OUT/comparison.json      the contest
    OUT/attempts.jsonl       a line for every process that trained: run, seconds, exit code, error
    OUT/runs/NAME/           a folder of `kdcache distill` for every run
    OUT/standings.json       what came of it (standings.py), with standings.csv, report.md, figures/ and report.html

A contest is a list of asks. A command adds one if it wants runs that the commands before it did not: more methods,
seeds or lengths. All else must stay the same, so that runs can be compared. The baseline joins every ask.

Seeds are the outer loop of an ask, so that an early end leaves whole rounds. In each round (a seed on a rung) the
contenders run in another order, so that a machine that slows down slows all of them alike. At the end of an ask the
baseline is repeated: its two runs differ only by the machine.

A contender is a row of the standings: a method, and where its views and its targets come from. A rung is one length on
one of two clocks: `time` gives every contender the same seconds of training, `steps` the same number of steps. If you
do not name them, the steps of a rung are those that the baseline reached in the time.
"""

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

from kdcache.cache.errors import UsageError
from kdcache.cache.shuffle import permutation
from kdcache.distill.config import FREE_ON_RESUME, TrainConfig, option_of
from kdcache.distill.losses.methods import applicable_options

BASELINE = "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A method, and where its views and its targets come from."""

    method: str
    source: str = "cache"
    fresh_views: bool = False
    passes: int | None = None  # of the store; None for all that the comparison has

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
    def label(self) -> str:
        """What people read, as in "none, stored views" or "logit, 4 views"; `name` is for files."""
        words = [self.method]
        if self.source == "online":
            words.append("teacher at every step")
        if self.source == "none":
            words.append("fresh views" if self.fresh_views else "stored views")
        if self.passes is not None:
            words.append(f"{self.passes} view{'s' if self.passes > 1 else ''}")
        return ", ".join(words)

    @property
    def fields(self) -> dict[str, Any]:
        """Fields of TrainConfig."""
        return asdict(self)


def make_contenders(
    methods: Sequence[str], *, online: Sequence[str] = (), views: Sequence[int] = (), fresh_views: bool = True
) -> tuple[Contender, ...]:
    """The rows of a comparison, the baseline first: `none` where it is among the methods, else the first one.

    Args:
        online: methods whose teacher runs at every step too, over fresh views: the limit of what views can bring.
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


CLOCKS = ("time", "steps")


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

    @property
    def order(self) -> tuple[int, float]:
        """Those of the time before those of steps, then by seconds, or steps where they were named."""
        return CLOCKS.index(self.clock), self.budget_s or self.steps or 0.0


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


COMPARISON = "comparison.json"
ATTEMPTS = "attempts.jsonl"
RUNS = "runs"

_BY_RUN = {"method", "source", "fresh_views", "passes", "steps", "epochs", "budget_seconds", "seed", "out"}
_ONLINE = {"teacher", "teacher_weights", "teacher_precision"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """One run of a contest."""

    contender: Contender
    rung: Rung
    seed: int
    again: int = 0  # the n-th repetition of the baseline

    @property
    def name(self) -> str:
        """The name of its folder."""
        repeated = ("", "-repeated")[self.again] if self.again < 2 else f"-repeated-{self.again}"
        return f"{self.rung.name}-{self.contender.name}-seed-{self.seed}{repeated}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What one command wants: every contender on every rung with every seed.

    Raises:
        UsageError: a contender, a rung or a seed twice, or none of them.
    """

    contenders: tuple[Contender, ...]
    rungs: tuple[Rung, ...]  # those of the time before those of steps
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        parts: dict[str, list[Any]] = {
            "contenders": [contender.name for contender in self.contenders],
            "rungs": [rung.name for rung in self.rungs],
            "seeds": list(self.seeds),
        }
        for what, names in parts.items():
            if not names or len(set(names)) < len(names):
                raise UsageError(f"a comparison needs {what}, each once; got {names}")

    def starts(self, baseline: Contender) -> Iterator[Start]:
        """Its runs in their order, without repetitions."""
        contenders = list(dict.fromkeys((baseline, *self.contenders)))
        for seed in self.seeds:
            for rung in self.rungs:
                order = permutation(f"{seed} {rung.name}", len(contenders))
                yield from (Start(contender=contenders[i], rung=rung, seed=seed) for i in order.tolist())

    def options(self) -> list[str]:
        """The words of the command line that ask for it."""
        lists = {
            "--methods": [c.method for c in self.contenders if c.source != "online"],
            "--online": [c.method for c in self.contenders if c.source == "online"],
            "--views": [str(c.passes) for c in self.contenders if c.passes is not None],
            "--budget": [f"{rung.budget_s:g}s" for rung in self.rungs if rung.clock == "time"],
            "--steps": [str(rung.steps) for rung in self.rungs if rung.steps is not None],
            "--clock": [rung.clock for rung in self.rungs],
        }
        words = []
        for option, names in lists.items():
            words += [option, ",".join(dict.fromkeys(names))] if names else []
        words += ["--seeds", str(len(self.seeds))]
        if not any(c.source == "none" and c.fresh_views for c in self.contenders):
            words.append("--no-fresh-views")
        return words

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(
            contenders=tuple(Contender(**contender) for contender in values["contenders"]),
            rungs=tuple(Rung(**rung) for rung in values["rungs"]),
            seeds=tuple(values["seeds"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    """All that was asked."""

    asks: tuple[Ask, ...]
    run: Mapping[str, Any]
    """Fields of TrainConfig that all runs share; a method takes weights of its own terms alone."""
    store_key: str  # of the store that all runs share, see spec.StoreSpec
    passes: int | None = None
    """Passes of the store that all runs are confined to, those that it had when the comparison was begun; None with
    --follow, which takes in later ones."""
    processes: int = 1  # of every run
    teacher: Mapping[str, Any] = field(default_factory=dict)
    """What is known of it: name, miou, pixel_accuracy, and build_s of each pass of the store."""

    @property
    def baseline(self) -> Contender:
        return self.asks[0].contenders[0]

    @property
    def contenders(self) -> list[Contender]:
        """The baseline first."""
        return list(dict.fromkeys(contender for ask in self.asks for contender in ask.contenders))

    @property
    def labels(self) -> dict[str, str]:
        """What people read, by name: the method if one row alone has it, else the contender's label."""
        rows = Counter(each.method for each in self.contenders)
        return {each.name: each.label if rows[each.method] > 1 else each.method for each in self.contenders}

    @property
    def charted(self) -> set[str]:
        """Names of those that charts show: none of less than the whole store, which have a figure of their own, unless
        the comparison has these alone."""
        of_views = all(each.passes is not None for each in self.contenders if each.source == "cache")
        return {each.name for each in self.contenders if of_views or each.passes is None}

    @property
    def rungs(self) -> list[Rung]:
        """Those of the time before those of steps, the shortest first."""
        found = dict.fromkeys(rung for ask in self.asks for rung in ask.rungs)
        return sorted(found, key=lambda rung: rung.order)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for ask in self.asks for seed in ask.seeds})

    @property
    def clocks(self) -> list[str]:
        return list(dict.fromkeys(rung.clock for rung in self.rungs))

    def starts(self) -> list[Start]:
        """All runs, in their order."""
        found: dict[Start, None] = {}
        for ask in self.asks:
            new = [start for start in ask.starts(self.baseline) if start not in found]
            found |= dict.fromkeys([*new, *self._repetitions(ask, new, found)])
        return list(found)

    def extended(self, asked: Self) -> Self:
        """With what else `asked` wants, and what it knows of the teacher; passes stay those of the beginning."""
        known = set(self.starts())
        more = [ask for ask in asked.asks if not known.issuperset(ask.starts(self.baseline))]
        held = {} if asked.is_online else {name: self.run[name] for name in _ONLINE & self.run.keys()}
        return replace(
            asked,
            asks=(*self.asks, *more),
            run={**asked.run, **held},
            passes=self.passes,
            teacher={**self.teacher, **asked.teacher},
        )

    def config(self, start: Start, out: str, steps: int | None = None) -> TrainConfig:
        """The run of a start, in the folder `out`.

        Args:
            steps: those of a rung of steps.

        Raises:
            UsageError: the method, the store and the options do not go together.
        """
        length = {"budget_seconds": start.rung.budget_s} if start.rung.clock == "time" else {"steps": steps}
        own = start.contender.fields
        if not start.contender.fresh_views and start.contender.passes is None:
            own["passes"] = self.passes
        shared = applicable_options(start.contender.method, self.run)
        return TrainConfig.from_dict({**shared, **own, **length, "seed": start.seed, "out": out})

    def commands(self) -> list[str]:
        """The command lines that ask for it, without --out and without options that have their defaults."""
        shared = {**self.run, "method": BASELINE, "source": "none", "steps": 1, "out": "OUT"}
        said = shlex.split(TrainConfig.from_dict(shared).command())
        for option in ("--method", "--source", "--steps", "--out"):
            at = said.index(option)
            del said[at : at + 2]
        common = ["--processes", str(self.processes), *said[2:]]
        return [shlex.join(["kdcache", "compare", *ask.options(), *common]) for ask in self.asks]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of to_dict. Raises UsageError if the values do not describe a contest."""
        try:
            return cls(**{**values, "asks": tuple(Ask.from_dict(ask) for ask in values["asks"])})
        except (KeyError, TypeError) as error:
            raise UsageError(
                f"{COMPARISON} does not describe a comparison: {error}", hint="name another folder"
            ) from None

    def differences(self, other: "Contest") -> list[str]:
        """Lines `what: mine, theirs`, for what no extension may change and differs."""
        free = FREE_ON_RESUME if self.is_online and other.is_online else FREE_ON_RESUME | _ONLINE
        mine, theirs = self._identity(free), other._identity(free)
        return [f"{name}: {mine[name]}, {theirs[name]}" for name in mine if mine[name] != theirs[name]]

    @property
    def is_online(self) -> bool:
        """Some contender has its teacher running at every step."""
        return any(contender.source == "online" for contender in self.contenders)

    def _identity(self, free: Collection[str]) -> dict[str, Any]:
        """What all runs share, by its option, without the `free` fields of TrainConfig."""
        options = {field.name: self.run.get(field.name, field.default) for field in fields(TrainConfig)}
        run = {option_of(n): v for n, v in options.items() if n not in free and n not in _BY_RUN}
        return {"store": self.store_key, "--processes": self.processes, **run}

    def _repetitions(self, ask: Ask, new: Sequence[Start], before: Mapping[Start, None]) -> list[Start]:
        """Of the baseline on the rungs that are new with an ask; if none is, on the shortest that it adds runs to."""
        brought = [rung for rung in ask.rungs if all(start.rung != rung for start in before)]
        shortest = sorted({start.rung for start in new}, key=lambda rung: rung.order)[:1]
        return [
            Start(
                contender=self.baseline,
                rung=rung,
                seed=ask.seeds[0],
                again=1 + max((start.again for start in before if start.rung == rung), default=0),
            )
            for rung in [rung for rung in brought if rung.clock == brought[0].clock] or shortest
        ]


def quoted(label: str) -> str:
    """A label within a sentence, in quotation marks if it has a comma: others could be listed beside it."""
    return f'"{label}"' if "," in label else label


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
