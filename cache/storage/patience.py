"""Retries: which errors of a remote storage pass, and how long it is worth waiting for that.

One place for all of them: the clients' own retries are switched off where they have any, or a silent server would be
asked 25 times for every time that is meant here.
"""

import errno
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_PASSING_CODES = {
    "ConditionalRequestConflict",  # another writer is at that key; who wins is still open
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "XAmzContentSHA256Mismatch",
}
_PASSING_STATUSES = {429, 500, 502, 503, 504}
_PASSING_ERRNOS = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}  # s3fs' words for 503 and 500
_PASSING_TYPES = {  # module -> its errors; looked at where the module is loaded
    "botocore.exceptions": ("HTTPClientError", "ConnectionError", "IncompleteReadError"),
    "botocore.parsers": ("ResponseParserError",),
    "aiohttp": ("ClientError",),
}
_CREDENTIAL_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidToken",
    "TokenRefreshRequired",
    "RequestTimeTooSkewed",
}
_CREDENTIAL_TYPES = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError")


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a storage is asked again. One that never answered is more likely misspelt than down."""

    first_s: float = 30.0  # before its first answer
    later_s: float = 600.0  # an outage
    shortest_pause_s: float = 0.1
    longest_pause_s: float = 10.0


def try_again(
    ask: Callable[[], _Result], limit_s: Callable[[], float], *, pauses: Patience, where: str
) -> _Result:
    """What `ask` returns, asked again with growing pauses while its errors pass; its last error once the limit is over.

    The limit is looked up anew each time: whoever is interrupted lowers it, and other threads then stop waiting too.
    """
    began = time.monotonic()
    told = False
    for pause_s in _pauses(pauses):
        try:
            return ask()
        except Exception as error:  # every file system has errors of its own
            waited_s = time.monotonic() - began
            if not is_transient(error) or waited_s + pause_s > limit_s():
                raise
            if waited_s > pauses.longest_pause_s and not told:
                told = True
                logger.warning("%s does not answer; trying for %.0f s more", where, limit_s() - waited_s)
        time.sleep(pause_s)
    raise AssertionError("pauses never end")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    return any(_passes(each) for each in _chain(error))


def refusal_code(error: BaseException) -> str:
    """The code by which S3 refused a request; empty for any other error."""
    return next((code for each in _chain(error) if (code := _code_and_status(each)[0])), "")


def concerns_credentials(error: BaseException) -> bool:
    """Whether the storage did not believe that this user may do this."""
    return any(
        isinstance(each, PermissionError)
        or _code_and_status(each)[0] in _CREDENTIAL_CODES
        or type(each).__name__ in _CREDENTIAL_TYPES
        for each in _chain(error)
    )


def _passes(error: BaseException) -> bool:
    code, status = _code_and_status(error)
    if code or status:
        return code in _PASSING_CODES or status in _PASSING_STATUSES
    types = [
        getattr(sys.modules[module], name)
        for module, names in _PASSING_TYPES.items()
        if module in sys.modules
        for name in names
    ]
    if isinstance(error, (TimeoutError, ConnectionError, EOFError, *types)):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNOS


def _code_and_status(error: BaseException) -> tuple[str, int]:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return "", 0
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _pauses(patience: Patience) -> Iterator[float]:
    """Doubling from the shortest to the longest, each by chance down to its half: many builders come back apart."""
    pause_s = patience.shortest_pause_s
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, patience.longest_pause_s)
