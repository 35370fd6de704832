"""Every error that a user can cause or meet, as one tree.

    KDCacheError             kind                exit code
    ├── UsageError           usage               2   a value that does not make sense; names its option or field
    ├── IncompleteError      incomplete          3   finished, but something that was asked for is missing
    ├── StoreNotFoundError   store-not-found    10
    ├── StoreMismatchError   store-mismatch     11   the store contains something else than was asked for
    ├── StoreDamagedError    store-damaged      12
    ├── NotFoundError        not-found          13   the dataset or the weights are not in the place that was searched
    ├── DataError            bad-data            1   a file of a dataset is unusable
    ├── WeightsError         bad-weights         1   a checkpoint does not fit
    ├── TeacherError         bad-teacher         1   the outputs of a teacher look wrong
    └── TrainingError        training-failed     1   a run has to stop (non-finite loss, ...)

A message says what is wrong, where, and which value. The hint names the next command. `kind` is stable, for programs.
"""


class KDCacheError(Exception):
    """The root of the tree. `str(error)` is the message alone; the command line prints the hint after it."""

    kind = "failed"
    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(KDCacheError):
    kind = "usage"
    exit_code = 2


class IncompleteError(KDCacheError):
    kind = "incomplete"
    exit_code = 3


class StoreNotFoundError(KDCacheError):
    kind = "store-not-found"
    exit_code = 10


class StoreMismatchError(KDCacheError):
    kind = "store-mismatch"
    exit_code = 11


class StoreDamagedError(KDCacheError):
    kind = "store-damaged"
    exit_code = 12


class NotFoundError(KDCacheError):
    kind = "not-found"
    exit_code = 13


class DataError(KDCacheError):
    kind = "bad-data"


class WeightsError(KDCacheError):
    kind = "bad-weights"


class TeacherError(KDCacheError):
    kind = "bad-teacher"


class TrainingError(KDCacheError):
    kind = "training-failed"
