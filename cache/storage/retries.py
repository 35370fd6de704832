"""Retries: which errors of a remote storage are transient, and how long to retry.

This is the only place that retries. The clients' own retries are switched off: they would multiply with these, and a
silent server would be asked 25 times for each attempt that is meant here.
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

_TRANSIENT_CODES = {
    "ConditionalRequestConflict",  # another writer is at that key; which of them wins is still open
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
_TRANSIENT_STATUSES = {429, 500, 502, 503, 504}
_TRANSIENT_ERRNOS = {errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EIO)}  # s3fs turns 503 and 500 into these
_TRANSIENT_TYPES = {  # module -> its errors; by name, so that none of these modules has to be imported
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
class RetryPolicy:
    """How long to retry. A storage that never answered has probably a misspelt URL, so it gets less time."""

    first_s: float = 30.0  # until it has answered for the first time
    later_s: float = 600.0  # after that: long enough for an outage
    shortest_pause_s: float = 0.1
    longest_pause_s: float = 10.0


def retry(
    ask: Callable[[], _Result], limit_s: Callable[[], float], *, policy: RetryPolicy, where: str
) -> _Result:
    """What `ask` returns. While its errors are transient it is called again, with growing pauses, up to the limit.

    Raises the last error when the limit is reached. The limit is read before every attempt: an interrupt lowers it, and
    all threads then stop retrying.
    """
    began = time.monotonic()
    warned = False
    for pause_s in _pauses(policy):
        try:
            return ask()
        except Exception as error:  # every file system of fsspec has its own error types
            waited_s = time.monotonic() - began
            if not is_transient(error) or waited_s + pause_s > limit_s():
                raise
            if waited_s > policy.longest_pause_s and not warned:  # once, and not for a short hiccup
                warned = True
                logger.warning("%s does not answer; trying for %.0f s more", where, limit_s() - waited_s)
        time.sleep(pause_s)
    raise AssertionError("pauses never end")


def is_transient(error: BaseException) -> bool:
    """True if the same request may succeed a moment later."""
    return any(_alone_is_transient(each) for each in _chain(error))


def refusal_code(error: BaseException) -> str:
    """The code with which S3 refused a request; empty for any other error."""
    return next((code for each in _chain(error) if (code := _code_and_status(each)[0])), "")


def concerns_credentials(error: BaseException) -> bool:
    """True if the storage rejected the user's credentials or permissions."""
    return any(
        isinstance(each, PermissionError)
        or _code_and_status(each)[0] in _CREDENTIAL_CODES
        or type(each).__name__ in _CREDENTIAL_TYPES
        for each in _chain(error)
    )


def _alone_is_transient(error: BaseException) -> bool:
    code, status = _code_and_status(error)
    if code or status:
        # An answer of the server is conclusive, whatever type the client wraps it in.
        return code in _TRANSIENT_CODES or status in _TRANSIENT_STATUSES
    types = [
        getattr(sys.modules[module], name)
        for module, names in _TRANSIENT_TYPES.items()
        if module in sys.modules
        for name in names
    ]
    if isinstance(error, (TimeoutError, ConnectionError, EOFError, *types)):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS


def _code_and_status(error: BaseException) -> tuple[str, int]:
    response = getattr(error, "response", None)
    if not isinstance(response, dict):
        return "", 0
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return str(response.get("Error", {}).get("Code", "")), int(status)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def _pauses(policy: RetryPolicy) -> Iterator[float]:
    """Pauses in seconds that double from the shortest to the longest, each shortened at random by up to a half.

    The randomness keeps many builders from returning all at once after an outage.
    """
    pause_s = policy.shortest_pause_s
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, policy.longest_pause_s)
