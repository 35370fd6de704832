"""Every error that a user can cause or meet, as one tree.

    KDCacheError             kind                exit code
    ├── UsageError           usage               2   a value that makes no sense, named with its option or field
    ├── IncompleteError      incomplete          3   finished, but something that was asked for is missing
    ├── StoreNotFoundError   store-not-found    10
    ├── StoreMismatchError   store-mismatch     11   the store holds something else than what was asked
    ├── StoreDamagedError    store-damaged      12
    ├── NotFoundError        not-found          13   dataset or weights are not where they were looked for
    ├── DataError            bad-data            1   a file of a dataset that cannot be used
    ├── WeightsError         bad-weights         1   a checkpoint that does not fit
    ├── TeacherError         bad-teacher         1   a teacher whose outputs look wrong
    └── TrainingError        training-failed     1   a run that cannot go on (non-finite loss, ...)

A message says what, where and which value; the hint names the next command. `kind` is stable and for programs.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class KDCacheError(Exception):
    """Base of the tree. `str(error)` is the message alone; the command line adds the hint."""

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
