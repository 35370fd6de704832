"""Standings: what came of a comparison, as numbers alone. Read from its folder, also while it goes on.

standings = Standings.read(Path("runs/comparison"))
runfolder.write_json(Path("standings.json"), standings.to_dict())
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdcache.cache.errors import NotFoundError
from kdcache.cache.storage.urls import redact
from kdcache.distill import runfolder
from kdcache.distill.compare.account import COMPLETE, FAILED, RunAccount, read_account, read_attempts
from kdcache.distill.compare.contest import COMPARISON, Contender, Contest
from kdcache.distill.compare.ranking import Move, Ranking, find_moves, rank
from kdcache.distill.compare.step_cost import Cost, measure_costs
from kdcache.distill.compare.teacher_cost import TeacherCost
from kdcache.distill.report.comparison import CLOSE_MIOU

FORMAT_VERSION = 1

STEADY = 0.05
"""A machine whose steps drift by more than this is worth a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """The baseline twice, with one seed: first among the others, then at the end of what was asked."""

    rung: str
    seed: int
    again: int  # the n-th repetition, for an extension of what was asked
    miou: tuple[float | None, float | None]
    steps: tuple[int, int]
    step_s: tuple[float, float]

    @property
    def step_drift(self) -> float:
        """Relative change of the time of a step from the first run to the last."""
        return self.step_s[1] / self.step_s[0] - 1 if self.step_s[0] else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Standings:
    """What came of a comparison."""

    contest: Contest
    outcomes: Sequence[RunAccount]
    rankings: Sequence[Ranking]
    moves: Sequence[Move]
    costs: Sequence[Cost]
    noise: Sequence[Noise]
    teacher_cost: TeacherCost | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises NotFoundError where no comparison is, UsageError where a file of it is damaged."""
        if not (folder / COMPARISON).is_file():
            raise NotFoundError(
                f"no comparison in {folder}: there is no {COMPARISON}", hint="kdcache compare --out DIR"
            )
        contest = Contest.from_dict(runfolder.read_json(folder / COMPARISON))
        attempts = read_attempts(folder)
        outcomes = [read_account(folder, start, attempts.get(start.name, [])) for start in contest.starts()]
        teacher_cost = TeacherCost.of(contest, outcomes)
        rankings = [rank(contest, rung, outcomes, teacher_cost) for rung in contest.rungs]
        return cls(
            contest=contest,
            outcomes=outcomes,
            rankings=rankings,
            moves=list(find_moves(rankings)),
            costs=measure_costs(contest, outcomes),
            noise=list(_noise(contest, outcomes)),
            teacher_cost=teacher_cost,
        )

    @property
    def main(self) -> Ranking:
        """The length on which most contenders were asked; of several those of time before steps, and the longest."""
        first = self.contest.clocks[0]
        return max(self.rankings, key=lambda r: (len(r.rows), r.rung.clock == first, r.rung.order))

    @property
    def counterpart(self) -> Ranking | None:
        """On the other clock than the main ranking: of the same budget, else as that is chosen."""
        others = [ranking for ranking in self.rankings if ranking.rung.clock != self.main.rung.clock]
        same = [ranking for ranking in others if ranking.rung.budget_s == self.main.rung.budget_s]
        return max(same or others, key=lambda r: (len(r.rows), r.rung.order), default=None)

    @property
    def cautions(self) -> list[str]:
        """What keeps the numbers from meaning what they seem to, a sentence each."""
        found = [
            f"on {noise.rung} a step of the baseline took {100 * noise.step_drift:+.0f} % at the end: costs, and places "
            "by time, are no surer than that"
            for noise in self.noise
            if abs(noise.step_drift) > STEADY
        ]
        early = [o.start.name for o in self.outcomes if o.summary and o.summary.ended_by_clock]
        if early:
            found.append(
                f"the time of {len(early)} runs was up before the learning rate was at its end: {', '.join(early)}"
            )
        if uneven := [ranking.rung.name for ranking in self.rankings if ranking.seeds_differ]:
            found.append(
                f"on {', '.join(uneven)} some methods have more seeds than others: places are by the difference to the "
                "baseline, paired by seed"
            )
        if differing := self._environment()["differing"]:
            found.append(f"runs differ in {', '.join(differing)}")
        asked = [o.record.inputs.get("teacher") or {} for o in self.outcomes if o.record and o.record.teacher]
        if len({teacher.get("weights_sha256") for teacher in asked}) > 1:
            found.append(
                "the teacher that ran along has other weights than the store's: its runs are no limit of the others"
            )
        teacher_miou = self.contest.teacher.get("miou")
        base = [
            row.miou
            for ranking in self.rankings
            for row in ranking.rows
            if row.contender == self.contest.baseline.name
        ]
        best = max((miou for miou in base if miou is not None), default=None)
        if teacher_miou is not None and best is not None and teacher_miou - best < CLOSE_MIOU:
            found.append(
                f"the teacher is less than {100 * CLOSE_MIOU:.0f} points above the baseline: this says little about "
                "distillation"
            )
        return found

    @property
    def failed(self) -> list[RunAccount]:
        return [outcome for outcome in self.outcomes if outcome.status == FAILED]

    def to_dict(self) -> dict[str, Any]:
        """JSON values. mIoU and IoU are fractions, times seconds."""
        contest = self.contest
        return {
            "format": FORMAT_VERSION,
            "baseline": contest.baseline.name,
            "contenders": [
                {"name": c.name, **asdict(c), "terms": self._terms(c)} for c in contest.contenders
            ],
            "clocks": contest.clocks,
            "rungs": [{"name": rung.name, **asdict(rung)} for rung in contest.rungs],
            "seeds": contest.seeds,
            "processes": contest.processes,
            "options": {**contest.run, "store": redact(str(contest.run.get("store", "")))},
            "store_key": contest.store_key,
            "commands": contest.commands(),
            "passes": contest.passes,
            "student": next((o.summary.student for o in self.outcomes if o.summary), None),
            "dataset": self._dataset(),
            "environment": self._environment(),
            "teacher": {
                **contest.teacher,
                "cost": self.teacher_cost.to_dict() if self.teacher_cost else None,
            },
            "rankings": [ranking.to_dict() for ranking in self.rankings],
            "cautions": self.cautions,
            "moves": [asdict(move) for move in self.moves],
            "costs": [asdict(cost) for cost in self.costs],
            "noise": [{**asdict(noise), "step_drift": noise.step_drift} for noise in self.noise],
            "curves": [_curve_dict(outcome) for outcome in self.outcomes if outcome.record],
            "runs": [outcome.to_dict() for outcome in self.outcomes],
        }

    def _terms(self, contender: Contender) -> dict[str, float]:
        """Weights of the loss, as the runs had them."""
        weights = (
            outcome.record.environment.get("term_weights", {})
            for outcome in self.outcomes
            if outcome.record and outcome.start.contender == contender
        )
        return next(weights, {})

    def _dataset(self) -> dict[str, Any]:
        records = [outcome.record for outcome in self.outcomes if outcome.record]
        scores = next((record.scores for record in records if record.scores), None) or {}
        asked = next(iter(records), None)
        pinned = asked.inputs.get("dataset", {}) if asked else {}
        return {
            "name": pinned.get("name") or self.contest.run.get("dataset"),
            "split": pinned.get("split"),
            "eval_split": asked.config.get("eval_split") if asked else None,
            "eval_images": scores.get("images"),
            "classes": list(scores.get("iou", {})),
        }

    def _environment(self) -> dict[str, Any]:
        """Of the first run, and under `differing` what other runs have otherwise."""
        found = [outcome.record.environment for outcome in self.outcomes if outcome.record]
        places = [{k: v for k, v in place.items() if k not in _OF_ONE_RUN} for place in found]
        if not places:
            return {"differing": []}
        differing = [
            name for name in places[0] if any(place.get(name) != places[0][name] for place in places)
        ]
        return {**places[0], "differing": differing}


_OF_ONE_RUN = frozenset({"term_weights", "in_flight_entries", "in_flight_entry_bytes", "in_flight_bytes"})


def _noise(contest: Contest, outcomes: Sequence[RunAccount]) -> Iterable[Noise]:
    done = {o.start.name: o for o in outcomes if o.status == COMPLETE}
    for outcome in done.values():
        if not outcome.start.again:
            continue
        first = done.get(replace(outcome.start, again=0).name)
        if first and first.summary and outcome.summary:
            one, other = first.summary, outcome.summary
            yield Noise(
                rung=outcome.start.rung.name,
                seed=outcome.start.seed,
                again=outcome.start.again,
                miou=(one.miou, other.miou),
                steps=(one.steps, other.steps),
                step_s=(one.step_s, other.step_s),
            )


def _curve_dict(outcome: RunAccount) -> dict[str, Any]:
    assert outcome.record is not None
    curve = outcome.record.curve()
    return {
        "run": outcome.start.name,
        "contender": outcome.start.contender.name,
        "rung": outcome.start.rung.name,
        "clock": outcome.start.rung.clock,
        "seed": outcome.start.seed,
        "again": outcome.start.again,
        "steps": list(curve.steps),
        "seconds": list(curve.seconds),
        "miou": list(curve.miou),
    }
