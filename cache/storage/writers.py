"""Writers: processes that leave things under names of their own, by which others see whether they still run."""

import os
import re
import socket
from collections.abc import Iterator
from itertools import count

_numbers: Iterator[int] = count()


def writer_name() -> str:
    """A name that no other call gives, in whatever process of whatever host: <host>-<process>-<number>."""
    return f"{socket.gethostname()}-{os.getpid()}-{next(_numbers)}"


def is_left_behind(name: str) -> bool:
    """Whether a `writer_name` is that of a process of this host that has ended."""
    writer = re.fullmatch(r"(.+)-(\d+)-\d+", name)
    return writer is not None and has_ended(writer[1], int(writer[2]))


def has_ended(host: str, process: int) -> bool:
    """Whether it was a process of this host and is gone; of other hosts nobody here can tell."""
    if host != socket.gethostname():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
