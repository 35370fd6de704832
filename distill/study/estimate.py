"""The estimate: what a store takes to build, to keep and to read, and after how many steps it has paid for itself.

Everything here is arithmetic on what was measured: the plan of the build, the storage, and a trial of the student.
"""

from dataclasses import dataclass
from math import ceil

from kdcache.cache.build.plan import BuildPlan
from kdcache.cache.storage.speed import StorageSpeed
from kdcache.cache.store.reader import requests_of_a_pass
from kdcache.cache.store.spec import StoreSpec
from kdcache.distill.study.trial import StudentTrial

GB = 2**30  # bytes that S3 bills as one


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """What a bucket costs, in USD."""

    gb_month: float  # kept
    gets_1000: float  # requests
    gb_traffic: float  # read


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What is known of a store before it is built."""

    spec: StoreSpec
    plan: BuildPlan
    storage: StorageSpeed
    trial: StudentTrial
    run_steps: int  # of one run
    runs: int  # that are to learn from the store
    prices: Prices
    free_bytes: int | None  # None where the storage does not say

    @property
    def build_s(self) -> float:
        """Seconds of one process for what is left; the storage decides where it is slower than the teacher."""
        writing_s = self.plan.bytes_left / self.storage.write_bytes_per_s
        return max(self.plan.seconds_left, writing_s)

    @property
    def fits(self) -> bool:
        return self.free_bytes is None or self.plan.bytes_left <= self.free_bytes

    @property
    def read_bytes_per_view(self) -> int:
        """Of the arrays that the method reads."""
        return sum(self.plan.bytes_per_entry[name] for name in (*self.spec.input_packings, *self.trial.needs))

    @property
    def needed_bytes_per_s(self) -> float:
        """What the storage has to give so that the student does not wait."""
        return self.trial.batch_size * self.read_bytes_per_view / self.trial.step_s

    @property
    def readers(self) -> int:
        """How many reading processes that takes, at what one of them was given."""
        return ceil(self.needed_bytes_per_s / self.storage.read_bytes_per_s)

    @property
    def paid_back_steps(self) -> int:
        """Steps until the teacher's forward passes that a step saves have paid for the build."""
        return ceil(self.build_s / self.trial.teacher_s)

    @property
    def saved_s(self) -> float:
        """Seconds that all runs save, the build paid; negative where it is not."""
        return self.runs * self.run_steps * self.trial.teacher_s - self.build_s

    @property
    def epoch_requests(self) -> int:
        """Until the cache has the pass; none where it still has it."""
        return requests_of_a_pass(self.spec, self.trial.needs)

    @property
    def epoch_bytes(self) -> int:
        return self.spec.dataset.images * self.read_bytes_per_view

    @property
    def epochs(self) -> float:
        """Of all runs."""
        return self.runs * self.run_steps * self.trial.batch_size / self.spec.dataset.images

    @property
    def usd_month(self) -> float:
        return self.plan.total_bytes / GB * self.prices.gb_month

    @property
    def usd_epoch(self) -> float:
        requests = self.epoch_requests / 1000 * self.prices.gets_1000
        return requests + self.epoch_bytes / GB * self.prices.gb_traffic
