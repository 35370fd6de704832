"""What the teacher cost a comparison once, as the builders of the store recorded it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from kdcache.distill.compare.account import COMPLETE, RunAccount
from kdcache.distill.compare.contest import Contest


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherCost:
    """Of the passes whose targets runs have used, the first ones of the store."""

    pass_s: Sequence[float]  # seconds of building each
    users: Sequence[int]  # runs that used it; a run that is confined to few passes uses the first ones

    @classmethod
    def of(cls, contest: Contest, accounts: Sequence[RunAccount]) -> Self | None:
        """None if no complete run used the store's targets, or if the builders recorded no times."""
        built = contest.teacher.get("build_s") or ()
        passes = [
            account.start.contender.passes or contest.passes or len(built)
            for account in accounts
            if account.start.contender.source == "cache" and account.status == COMPLETE
        ]
        if not built or not passes:
            return None
        used = range(min(max(passes), len(built)))
        return cls(pass_s=[built[at] for at in used], users=[sum(of > at for of in passes) for at in used])

    @property
    def build_s(self) -> float:
        return sum(self.pass_s)

    @property
    def passes(self) -> int:
        return len(self.pass_s)

    @property
    def runs(self) -> int:
        """Those that used the store's targets."""
        return self.users[0]

    @property
    def shared_s(self) -> float:
        """The mean share of a run."""
        return self.build_s / self.runs

    def whole_s(self, passes: int | None) -> float:
        """Of the first passes, all of them for None: what a run of its own would have had to pay."""
        return sum(self.pass_s[:passes])

    def share_s(self, passes: int | None) -> float:
        """The same, of each pass an equal share for every run that used it."""
        shares = [seconds / users for seconds, users in zip(self.pass_s, self.users, strict=True)]
        return sum(shares[:passes])

    def to_dict(self) -> dict[str, Any]:
        return {
            **{name: getattr(self, name) for name in ("build_s", "passes", "runs", "shared_s")},
            "pass_s": list(self.pass_s),
            "users": list(self.users),
        }
