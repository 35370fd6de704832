"""Writers: processes that name their files after themselves, so that others can see whether the writer still runs."""

import os
import re
import socket
from collections.abc import Iterator
from itertools import count

_numbers: Iterator[int] = count()


def writer_name() -> str:
    """A name that no other call returns, in any process of any host: <host>-<process id>-<number>."""
    return f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"


def is_left_behind(name: str) -> bool:
    """True if `name` is the `writer_name` of a process of this host that has ended."""
    writer = re.fullmatch(r"(.+)-(\d+)-\d+", name)
    return writer is not None and has_ended(writer[1], int(writer[2]))


def has_ended(host: str, process: int) -> bool:
    """True if it was a process of this host and has ended. About other hosts nothing is known here, so False."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)  # signal 0 only asks whether the process exists
    except ProcessLookupError:
        return True
    except PermissionError:  # it exists, and belongs to another user
        pass
    return False
