"""Requests: what may be asked of a codec, as text, in the one form that goes into a store's key.

    fp16    uniform[:STEP]    delta[:STEP]    pca:K[:STEP]    dct[:STEP[:K]]    dct-range[:STEP[:K]]
    auto[:MAX_KL[:METHODS]]

Nothing here imports torch: `kdcache ls` reads the specs of a whole home, and torch alone would cost it three seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kdcache.cache.errors import UsageError, unknown_name

AUTO = "auto"
DEFAULT_MAX_KL = 1e-3
DEFAULT_METHODS = ("logit",)
JUDGED_METHODS = ("logit", "cwd", "dist", "dkd")  # the keys of fidelity.DIVERGENCES


def canonical_request(request: str, channels: int | None = None) -> str:
    """`request` in its one form.

    Args:
        request: as in "uniform:.5" or "auto".
        channels: of the target, where they are known.

    Raises:
        UsageError: it is unknown or malformed, or asks for more components than the target has channels.
    """
    name, argument = split_request(request)
    if name == AUTO:
        return str(Promise.parse(argument))
    argument = CHECKS[name](name, argument, channels)
    return name if argument is None else f"{name}:{argument}"


def split_request(request: str) -> tuple[str, str | None]:
    """The codec's name, and the text after the first colon. Raises UsageError for an unknown name."""
    name, colon, argument = request.partition(":")
    if name not in (AUTO, *CHECKS):
        raise unknown_name("codec", name, (AUTO, *CHECKS))
    return name, argument if colon else None


@dataclass(frozen=True, slots=True)
class Promise:
    """The bound that `auto` has to keep."""

    max_kl: float
    methods: tuple[str, ...]

    @classmethod
    def parse(cls, argument: str | None) -> "Promise":
        """From the text after `auto:`. Raises UsageError."""
        bound, _, names = (argument or "").partition(":")
        methods = tuple(sorted(set(names.split(",")))) if names else DEFAULT_METHODS
        try:
            max_kl = float(bound) if bound else DEFAULT_MAX_KL
        except ValueError:
            max_kl = math.nan
        if not 1e-7 <= max_kl <= 1:
            raise UsageError(f"codec auto: the bound must be from 1e-7 to 1, got {bound!r}", hint="auto:1e-3")
        for name in methods:
            if name not in JUDGED_METHODS:
                raise unknown_name("method to choose a codec for", name, JUDGED_METHODS)
        return cls(max_kl, methods)

    def __str__(self) -> str:
        """The canonical request."""
        methods = "" if self.methods == DEFAULT_METHODS else f":{','.join(self.methods)}"
        return f"{AUTO}:{self.max_kl!r}{methods}"


def parse_step(codec: str, text: str) -> float:
    """A step out of a request. Raises UsageError for one that is not a power of two from 2^-16 to 2^16."""
    try:
        step = float(text)
        exact = math.isfinite(step) and step > 0 and math.frexp(step)[0] == 0.5
    except ValueError:
        exact = False
    if not exact or not 2.0**-16 <= step <= 2.0**16:
        raise UsageError(
            f"codec {codec}: the step must be a power of two from 2^-16 to 2^16, got {text!r}",
            hint=f"for example {codec}:0.125; {codec} without a step chooses one for this teacher",
        )
    return step


def parse_arguments(
    codec: str, argument: str | None, example: str, typed: str | None = None
) -> tuple[int | None, float | None]:
    """(components, step) from "K", "K:STEP" or None. Raises UsageError, which quotes `typed` (default: `argument`)."""
    if argument is None:
        return None, None
    first, _, second = argument.partition(":")
    try:
        components, step = int(first), float(second) if second else None
    except ValueError:
        components, step = 0, None
    if not 1 <= components <= 2**14 or not (step is None or 2.0**-16 <= step <= 2.0**16):
        raise UsageError(
            f"codec {codec}: {(typed or argument)!r} needs 1 to 16384 components and a step from 2^-16 to 2^16",
            hint=f"for example {example}",
        )
    return components, step


def constriction_stream() -> Any:
    """The range coder, constriction's module `stream`. Raises UsageError where it is not installed."""
    try:
        from constriction import stream
    except ImportError:
        raise UsageError(
            "codec dct-range needs the package constriction", hint="pip install 'kdcache[range]'"
        ) from None
    return stream


def _check_fp16(codec: str, argument: str | None, channels: int | None) -> str | None:
    if argument is not None:
        raise UsageError(f"codec fp16 takes no argument, got {argument!r}", hint="write fp16")
    return None


def _check_step(codec: str, argument: str | None, channels: int | None) -> str | None:
    return None if argument is None else repr(parse_step(codec, argument))


def _check_pca(codec: str, argument: str | None, channels: int | None) -> str | None:
    components, step = parse_arguments(codec, argument, "pca:64 or pca:64:0.125")
    if components is None:
        raise UsageError("codec pca: the number of components is missing", hint="for example pca:64")
    _require_channels(codec, components, channels)
    return str(components) if step is None else f"{components}:{parse_step('uniform', repr(step))!r}"


def _check_dct(codec: str, argument: str | None, channels: int | None) -> str | None:
    if argument is None:
        return None
    first, _, second = argument.partition(":")
    _, step = parse_arguments(codec, f"1:{first}", f"{codec}:0.25 or {codec}:0.25:64", argument)
    components, _ = parse_arguments(codec, second or None, f"{codec}:0.25:64", argument)
    _require_channels(codec, components, channels)
    return repr(step) if components is None else f"{step!r}:{components}"


def _check_range(codec: str, argument: str | None, channels: int | None) -> str | None:
    constriction_stream()
    return _check_dct(codec, argument, channels)


def _require_channels(codec: str, components: int | None, channels: int | None) -> None:
    """Raises UsageError for more components than channels."""
    if components is not None and channels is not None and components > channels:
        raise UsageError(
            f"codec {codec}: {components} components, but the target has only {channels} channels",
            hint=f"use {channels} or fewer",
        )


# By name: (name, text after the colon, channels) -> that text in its one form. The classes are in registry.CODECS.
CHECKS: dict[str, Callable[[str, str | None, int | None], str | None]] = {
    "fp16": _check_fp16,
    "uniform": _check_step,
    "delta": _check_step,
    "pca": _check_pca,
    "dct": _check_dct,
    "dct-range": _check_range,
}
