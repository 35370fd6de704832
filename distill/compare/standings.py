"""Standings: what came of a comparison, as numbers alone. Read from its folder, also during the comparison.

standings = Standings.read(Path("runs/comparison"))
runfolder.write_json(Path("standings.json"), standings.to_dict())
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from kdcache.cache.errors import NotFoundError
from kdcache.cache.storage.urls import redact
from kdcache.distill import runfolder
from kdcache.distill.compare.account import FAILED, RunAccount, read_account, read_attempts
from kdcache.distill.compare.cautions import Noise, find_cautions, find_doubt, measure_noise
from kdcache.distill.compare.contest import COMPARISON, Contender, Contest
from kdcache.distill.compare.ranking import Move, Ranking, find_moves, rank
from kdcache.distill.compare.step_cost import Cost, measure_costs
from kdcache.distill.compare.teacher_cost import TeacherCost

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Standings:
    """What came of a comparison."""

    contest: Contest
    accounts: Sequence[RunAccount]
    rankings: Sequence[Ranking]
    moves: Sequence[Move]
    costs: Sequence[Cost]
    noise: Sequence[Noise]
    teacher_cost: TeacherCost | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises NotFoundError if the folder has no comparison, UsageError if one of its files is damaged."""
        if not (folder / COMPARISON).is_file():
            raise NotFoundError(
                f"no comparison in {folder}: there is no {COMPARISON}",
                hint="name a folder that compare wrote with --out; kdcache compare --help",
            )
        contest = Contest.from_dict(runfolder.read_json(folder / COMPARISON))
        attempts = read_attempts(folder)
        accounts = [read_account(folder, start, attempts.get(start.name, [])) for start in contest.starts()]
        teacher_cost = TeacherCost.of(contest, accounts)
        ranked = [rank(contest, rung, accounts, teacher_cost) for rung in contest.rungs]
        rankings = [replace(each, doubt=find_doubt(contest, each, accounts)) for each in ranked]
        return cls(
            contest=contest,
            accounts=accounts,
            rankings=rankings,
            moves=list(find_moves(rankings)),
            costs=measure_costs(contest, accounts),
            noise=list(measure_noise(accounts)),
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
        differing = self._environment()["differing"]
        return find_cautions(self.contest, self.accounts, self.rankings, self.noise, differing)

    @property
    def failed(self) -> list[RunAccount]:
        return [account for account in self.accounts if account.status == FAILED]

    def to_dict(self) -> dict[str, Any]:
        """JSON values. mIoU and IoU are fractions, times seconds."""
        contest, labels = self.contest, self.contest.labels

        def labelled(values: dict[str, Any]) -> dict[str, Any]:
            return {**values, "label": labels[values["contender"]]}

        return {
            "format": FORMAT_VERSION,
            "baseline": contest.baseline.name,
            "contenders": [
                {"name": c.name, "label": labels[c.name], **asdict(c), "terms": self._terms(c)}
                for c in contest.contenders
            ],
            "clocks": contest.clocks,
            "rungs": [{"name": rung.name, **asdict(rung)} for rung in contest.rungs],
            "seeds": contest.seeds,
            "processes": contest.processes,
            "options": {**contest.run, "store": redact(str(contest.run.get("store", "")))},
            "store_key": contest.store_key,
            "commands": contest.commands(),
            "passes": contest.passes,
            "student": next((a.summary.student for a in self.accounts if a.summary), None),
            "dataset": self._dataset(),
            "environment": self._environment(),
            "teacher": {
                **contest.teacher,
                "cost": self.teacher_cost.to_dict() if self.teacher_cost else None,
            },
            "rankings": [ranking.to_dict() for ranking in self.rankings],
            "cautions": self.cautions,
            "moves": [labelled(asdict(move)) for move in self.moves],
            "costs": [labelled(asdict(cost)) for cost in self.costs],
            "noise": [{**asdict(noise), "step_drift": noise.step_drift} for noise in self.noise],
            "curves": [labelled(_curve_dict(account)) for account in self.accounts if account.record],
            "runs": [labelled(account.to_dict()) for account in self.accounts],
        }

    def _terms(self, contender: Contender) -> dict[str, float]:
        """Weights of the loss, as the runs had them."""
        weights = (
            account.record.environment.get("term_weights", {})
            for account in self.accounts
            if account.record and account.start.contender == contender
        )
        return next(weights, {})

    def _dataset(self) -> dict[str, Any]:
        records = [account.record for account in self.accounts if account.record]
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
        found = [account.record.environment for account in self.accounts if account.record]
        places = [{k: v for k, v in place.items() if k not in _OF_ONE_RUN} for place in found]
        if not places:
            return {"differing": []}
        differing = [
            name for name in places[0] if any(place.get(name) != places[0][name] for place in places)
        ]
        return {**places[0], "differing": differing}


_OF_ONE_RUN = frozenset({"term_weights", "in_flight_entries", "in_flight_entry_bytes", "in_flight_bytes"})


def _curve_dict(account: RunAccount) -> dict[str, Any]:
    assert account.record is not None
    curve = account.record.curve()
    return {
        "run": account.start.name,
        "contender": account.start.contender.name,
        "rung": account.start.rung.name,
        "clock": account.start.rung.clock,
        "seed": account.start.seed,
        "again": account.start.again,
        "steps": list(curve.steps),
        "seconds": list(curve.seconds),
        "miou": list(curve.miou),
    }
