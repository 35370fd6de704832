"""Plain files below a folder: a store is data, so no link in it leads elsewhere, and no pipe in it is waited for.

The folder itself may be a link, which its user made.
"""

import errno
import os
import stat
from pathlib import Path

from kdcache.cache.errors import StoreDamagedError


def open_plain(root: Path | str, path: str) -> int:
    """A descriptor of the file to read from. Raises StoreDamagedError for anything but a plain one, and OSError."""
    require_inside(root, path)
    try:
        # Without waiting: a pipe without a writer would hold us for ever.
        descriptor = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _no_object(root, path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_object(root, path)
    return descriptor


def plain_size(root: Path | str, path: str) -> int:
    """Bytes of the file. Raises as `open_plain`."""
    require_inside(root, path)
    found = os.lstat(f"{root}/{path}")
    if not stat.S_ISREG(found.st_mode):
        raise _no_object(root, path)
    return found.st_size


def require_inside(root: Path | str, path: str) -> None:
    """Raises StoreDamagedError where a folder on the way to `path` is a link. Costs a look, 1 us, for each."""
    start = 0
    while (end := path.find("/", start)) >= 0:
        try:
            if stat.S_ISLNK(os.lstat(f"{root}/{path[:end]}").st_mode):
                raise _no_object(root, path[:end])
        except (FileNotFoundError, NotADirectoryError):
            return  # nothing is there, so nothing leads elsewhere
        start = end + 1


def _no_object(root: Path | str, path: str) -> StoreDamagedError:
    return StoreDamagedError(
        f"{root}/{path} is a link or no plain file: a store holds plain files in plain folders alone",
        hint="put what it stands for in its place; the store's own folder may be a link",
    )
