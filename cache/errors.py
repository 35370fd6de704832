"""Every error that a user can cause or meet, as one tree.

    KDCacheError             kind                exit code
    ├── UsageError           usage               2   a value that does not make sense; names its option or field
    ├── IncompleteError      incomplete          3   finished, but something that was asked for is missing
    ├── StoreNotFoundError   store-not-found    10
    ├── StoreMismatchError   store-mismatch     11   the store contains something else than was asked for
    ├── StoreDamagedError    store-damaged      12
    ├── NotFoundError        not-found          13   the dataset or the weights were not found
    ├── DataError            bad-data            1   a file of a dataset is unusable
    ├── WeightsError         bad-weights         1   a checkpoint does not fit
    ├── TeacherError         bad-teacher         1   the outputs of a teacher look wrong
    └── TrainingError        training-failed     1   a run has to stop (non-finite loss, ...)

A message says what is wrong, where, and which value. The hint names the next command. `kind` is stable, for programs.
"""

from collections.abc import Iterable
from difflib import get_close_matches


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


def unknown_name(kind: str, name: str, known: Iterable[str], *, more: str = "") -> UsageError:
    """The error for a name that is not among the `known` ones; its hint offers the closest, then lists all.

    Args:
        kind: of thing, as in "method" or "--recipe: recipe".
        more: what else may be given, as in "or package.module:function".
    """
    names = list(known)
    close = get_close_matches(name.lower(), names, n=1)
    listed = f"one of: {', '.join(names)}" + (f", {more}" if more else "")
    return UsageError(
        f"unknown {kind} {name!r}", hint=f"did you mean {close[0]}? {listed}" if close else listed
    )
