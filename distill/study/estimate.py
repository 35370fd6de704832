"""The estimate: time and money to build, keep and read a store, and the number of training steps after which it pays.

Everything here is arithmetic on measurements: the plan of the build, the speed of the storage, a trial of the student.
"""

from dataclasses import dataclass
from math import ceil

from kdcache.cache.build.plan import BuildPlan
from kdcache.cache.images.decoded import CachePlan
from kdcache.cache.storage.speed import StorageSpeed
from kdcache.cache.store.reader import requests_of_a_pass
from kdcache.cache.store.spec import StoreSpec
from kdcache.distill.study.trial import StudentTrial

GB = 2**30  # bytes: S3 bills by this unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Prices:
    """Prices of a bucket in USD."""

    gb_month: float  # for keeping a GB for a month
    gets_1000: float  # for 1000 GET requests
    gb_traffic: float  # for reading a GB


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a store will cost, and what it will save, before it is built."""

    spec: StoreSpec
    plan: BuildPlan
    storage: StorageSpeed
    trial: StudentTrial
    run_steps: int  # of one run
    runs: int  # that will use the store
    prices: Prices
    free_bytes: int | None  # None if the storage does not report it
    images: CachePlan | None = None  # None if none are kept in a cache

    @property
    def build_s(self) -> float:
        """Seconds that one process needs for the rest of the build: the teacher's or the storage's, whichever is more."""
        writing_s = self.plan.bytes_left / self.storage.write_bytes_per_s
        return max(self.plan.seconds_left, writing_s)

    @property
    def fits(self) -> bool:
        """True if the storage has space for the rest of the build, or does not report its free space."""
        return self.free_bytes is None or self.plan.bytes_left <= self.free_bytes

    @property
    def read_bytes_per_view(self) -> int:
        """Bytes of a view's arrays that the method reads."""
        return sum(self.plan.bytes_per_entry[name] for name in (*self.spec.input_packings, *self.trial.needs))

    @property
    def needed_bytes_per_s(self) -> float:
        """The reading speed at which the student does not wait for data."""
        return self.trial.batch_size * self.read_bytes_per_view / self.trial.step_s

    @property
    def readers(self) -> int:
        """The number of reading processes for that speed, from the measured speed of one."""
        return ceil(self.needed_bytes_per_s / self.storage.read_bytes_per_s)

    @property
    def paid_back_steps(self) -> int:
        """The number of training steps after which the saved forward passes of the teacher make up for the build."""
        return ceil(self.build_s / self.trial.teacher_s)

    @property
    def saved_s(self) -> float:
        """Seconds that all runs save together, minus the build; negative if the build takes longer."""
        return self.runs * self.run_steps * self.trial.teacher_s - self.build_s

    @property
    def epoch_requests(self) -> int:
        """Requests to the storage for an epoch whose pass is not in the host's cache."""
        return requests_of_a_pass(self.spec, self.trial.needs)

    @property
    def epoch_bytes(self) -> int:
        """Bytes that an epoch reads."""
        return self.spec.dataset.images * self.read_bytes_per_view

    @property
    def epochs(self) -> float:
        """Epochs of all runs together."""
        return self.runs * self.run_steps * self.trial.batch_size / self.spec.dataset.images

    @property
    def usd_month(self) -> float:
        """USD a month for keeping the store."""
        return self.plan.total_bytes / GB * self.prices.gb_month

    @property
    def usd_epoch(self) -> float:
        """USD for an epoch whose pass is not in the host's cache."""
        requests = self.epoch_requests / 1000 * self.prices.gets_1000
        return requests + self.epoch_bytes / GB * self.prices.gb_traffic
