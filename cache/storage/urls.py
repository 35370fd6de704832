"""URLs of where things lie: a local path, file://, or any scheme of fsspec; never with credentials in them."""

import re

from kdcache.cache.errors import UsageError


def redact(url: str) -> str:
    """The URL without user information, fit for messages and records."""
    return _USER_INFO.sub("://", url)


def require_no_credentials(url: str) -> None:
    """Raises UsageError: credentials in a URL are kept by every shell, process list and run that names it."""
    if _USER_INFO.search(url):
        raise UsageError(
            f"{redact(url)} was given with credentials in it",
            hint="leave them out: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, are where they belong",
        )


def join_url(home: str, name: str) -> str:
    """The URL of `name` under `home`."""
    return f"{home.rstrip('/')}/{name}"


# A key may hold slashes; what follows a colon is one, unless it is a port.
_USER_INFO = re.compile(r"://(?:[^/@\s]*|[^/@\s:]*:(?!\d+/)[^@\s]*)@")
