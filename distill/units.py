"""Durations and sizes in bytes, as people write and read them."""

import re

_PATTERN = re.compile(
    r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?"
)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB")


def parse_duration(text: str) -> float:
    """Seconds in "90s", "20m", "1h30m" or "2d".

    Raises:
        ValueError: for anything else, including a number without a unit. Its message is one line for the user.
    """
    text = text.strip().lower()
    match = _PATTERN.fullmatch(text)
    parts = {unit: float(n) for unit, n in match.groupdict().items() if n is not None} if match else {}
    seconds = sum(n * _SECONDS[unit] for unit, n in parts.items())
    if seconds > 0:
        return seconds
    if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
        raise ValueError(f"{text!r} has no unit: write {text}s or {text}m")
    raise ValueError(f"{text!r} is not a duration; write it as 90s, 20m or 1h30m")


def duration_text(seconds: float) -> str:
    """Seconds as people read them: "8.5 s", "12 min 30 s" or "2 h 5 min"."""
    if seconds < 59.5:  # from here on the rounded text would be "60 s"
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes in "50GB", "1.5 TB" or "800MiB".

    Raises:
        ValueError: for anything else, including a number without a unit. Its message is one line for the user.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise ValueError(f"{text!r} is not a size; write it as 50GB or 800MB")
    return size


def bytes_text(size: int) -> str:
    """The shortest text that parse_bytes turns into the same number: "50GB", "1234567B"."""
    unit = next(unit for unit in ("TB", "GB", "MB", "KB", "B") if size % _UNITS[unit] == 0)
    return f"{size // _UNITS[unit]}{unit}"


def size_text(count: float) -> str:
    """Bytes as people read them, in powers of 1000: 1234567 is "1.23 MB"."""
    for unit in _DECIMAL_UNITS[:-1]:
        if abs(count) < 999.5:  # from here on three digits would round to "1e+03"
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_DECIMAL_UNITS[-1]}"
