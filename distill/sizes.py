"""Amounts of bytes as people write and read them."""

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes in "50GB", "1.5 TB" or "800MiB".

    Raises:
        ValueError: anything else, a bare number too; its message is one line for the user.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise ValueError(f"{text!r} is not a size, such as 50GB or 800MB")
    return size


def bytes_text(size: int) -> str:
    """A text that parse_bytes makes the same number of, as short as it gets: "50GB", "1234567B"."""
    unit = next(unit for unit in ("TB", "GB", "MB", "KB", "B") if size % _UNITS[unit] == 0)
    return f"{size // _UNITS[unit]}{unit}"
