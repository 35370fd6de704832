"""HTML and SVG as Python calls: `tag("td", text, class_="num")`. What is not markup already is escaped, always."""

from html import escape
from typing import Final


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | int | float | None
VOID: Final = frozenset({"meta", "img", "br"})  # elements without an end tag


def tag(element: str, /, *children: Child, **attributes: object) -> Markup:
    """One element. `class_` is class, `aria_label` aria-label; an attribute of None or False is left out."""
    opening = element + "".join(
        f' {_attribute(key)}="{escape(_text(value))}"' if value is not True else f" {_attribute(key)}"
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if element in VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(*children)}</{element}>")


def join(*children: Child) -> Markup:
    """Several children, one after the other; None is nothing."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else escape(_text(child))
            for child in children
            if child is not None
        )
    )


def _attribute(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _text(value: object) -> str:
    """Coordinates to a hundredth of a pixel: more would only make the page larger."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
