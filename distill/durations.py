"""Lengths of time as people write and read them."""

import re

_PATTERN = re.compile(
    r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?"
)
_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Seconds in "90s", "20m", "1h30m" or "2d".

    Raises:
        ValueError: anything else, a bare number too; its message is one line for the user.
    """
    text = text.strip().lower()
    match = _PATTERN.fullmatch(text)
    parts = {unit: float(n) for unit, n in match.groupdict().items() if n is not None} if match else {}
    seconds = sum(n * _SECONDS[unit] for unit, n in parts.items())
    if seconds > 0:
        return seconds
    if re.fullmatch(r"\d+(\.\d+)?", text) and float(text) > 0:
        raise ValueError(f"{text!r} lacks its unit: {text}s or {text}m")
    raise ValueError(f"{text!r} is not a duration, such as 90s, 20m or 1h30m")


def duration_text(seconds: float) -> str:
    """As in "8.5 s", "12 min 30 s" or "2 h 5 min"."""
    if seconds < 59.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
