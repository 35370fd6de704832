"""The price of a comparison: how many runs and how many hours, said before anything starts."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import KDCacheError
from kdcache.cli.output import Console
from kdcache.distill.units import duration_text

if TYPE_CHECKING:
    from kdcache.distill.compare.contest import Contest

ASK_S = 3600.0  # of training: for more than that a person is asked first


@dataclass(frozen=True, slots=True)
class _Price:
    """What is left of a comparison."""

    runs: int
    runs_left: int
    training_s: float  # of the runs whose length is a time; of the others nothing is known
    untimed: int  # runs of steps that were not timed yet

    @classmethod
    def of(cls, contest: "Contest", out: Path) -> "_Price":
        from kdcache.distill.compare.referee import is_done

        starts = contest.starts()
        left = [start for start in starts if not is_done(out, start)]
        timed = [start.rung.budget_s for start in left if start.rung.budget_s is not None]
        return cls(len(starts), len(left), sum(timed), len(left) - len(timed))

    def text(self, *, longer: bool) -> str:
        """One line. `longer`: some runs have the baseline's number of steps, whatever time a step takes."""
        said = [f"{self.runs_left} of {self.runs} runs left"]
        if self.training_s:
            more = ", more where a step takes longer than the baseline's" if longer else ""
            said.append(f"about {duration_text(self.training_s)} of training{more}")
        if self.untimed:
            said.append(f"{self.untimed} runs have a number of steps, whose time is not known yet")
        return "; ".join([*said, "start-up and evaluation come on top"])


def say_price(console: Console, contest: "Contest", out: Path) -> None:
    """A note of how many runs are left and how long they train."""
    price = _Price.of(contest, out)
    if price.runs_left:
        console.note(price.text(longer="steps" in contest.clocks))


def ask_about_price(contest: "Contest", out: Path) -> None:
    """A question before more than an hour of training, where there is somebody to ask. Raises KDCacheError for "no"."""
    if _Price.of(contest, out).training_s <= ASK_S or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    if not click.confirm("start?", default=True, err=True):
        raise KDCacheError("nothing was started", hint="a shorter --budget, fewer --methods or fewer --seeds")


def show_plan(console: Console, contest: "Contest", out: Path) -> None:
    """What --dry-run writes: all runs in their order, and what is left of them."""
    from kdcache.distill.compare.referee import is_done

    starts = contest.starts()
    left = [start for start in starts if not is_done(out, start)]
    if console.json:
        runs = [
            {
                "name": start.name,
                "budget_s": start.rung.budget_s,
                "steps": start.rung.steps,
                "complete": start not in left,
            }
            for start in starts
        ]
        console.document({"contest": contest.to_dict(), "runs": runs})
        return
    console.table(
        ["run", "method", "seed", "training", "folder"],
        [
            [
                number,
                f"{start.contender.label}{', repeated' if start.again else ''}",
                start.seed,
                _length_text(start.rung) if start in left else "complete",
                start.name,
            ]
            for number, start in enumerate(starts, start=1)
        ],
        optional=["folder"],
    )
    console.line("")
    console.line(_Price.of(contest, out).text(longer="steps" in contest.clocks))


def _length_text(rung: Any) -> str:
    if rung.steps is not None:
        return f"{rung.steps} steps"
    text = duration_text(rung.budget_s)
    return text if rung.clock == "time" else f"the baseline's steps in {text}"
