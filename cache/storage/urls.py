"""URLs of places: a local path, file://, or any scheme of fsspec, and never with credentials in them."""

import re

from kdcache.cache.errors import UsageError


def redact(url: str) -> str:
    """The URL without user name and password, safe for messages and records."""
    return _USER_INFO.sub("://", url)


def require_no_credentials(url: str) -> None:
    """Raises UsageError for a URL with credentials: shells, process lists and run records would keep them."""
    if _USER_INFO.search(url):
        raise UsageError(
            f"{redact(url)} was given with credentials in it",
            hint="leave them out and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use an AWS profile",
        )


def join_url(home: str, name: str) -> str:
    """The URL of `name` under `home`."""
    return f"{home.rstrip('/')}/{name}"


# A key may contain slashes: text after a colon is one, unless it is the number of a port.
_USER_INFO = re.compile(r"://(?:[^/@\s]*|[^/@\s:]*:(?!\d+/)[^@\s]*)@")
