"""How a method looks on a page, in every chart the same: colour, shape and dash, so that none has to be told by colour.

The colours are told apart by readers with normal, deuteranopic and protanopic sight, on light and dark paper
(tests/unit/test_looks.py holds the distances). More methods than colours: those after the best are grey, and named.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kdcache.distill.report.markup import Markup, tag

LIGHT: Final = ("#206fd1", "#983400", "#3d955c", "#d77306", "#2f2673", "#9f7fac", "#560232")
DARK: Final = ("#2579ae", "#c96723", "#8ce9a7", "#eeed20", "#3b63fc", "#e5cff6", "#9f5b54")
DASHES: Final = (None, "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2")
SHAPES: Final = ("circle", "square", "triangle", "diamond", "wedge", "cross", "plus")


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """`class_` names a colour of the page's style sheet."""

    class_: str
    shape: str
    dash: str | None = None


BASELINE: Final = Look(class_="baseline", shape="ring", dash="5 4")
PLAIN: Final = Look(class_="plain", shape="circle")


def give_looks(methods: Sequence[str], baseline: str) -> dict[str, Look]:
    """A look a method, the best first; the baseline's is always the same."""
    looks, others = {baseline: BASELINE}, [name for name in methods if name != baseline]
    for index, name in enumerate(others):
        coloured = index < len(LIGHT)
        looks[name] = Look(
            class_=f"c{index}" if coloured else "rest",
            shape=SHAPES[index % len(SHAPES)],
            dash=DASHES[index % len(DASHES)],
        )
    return looks


def marker(look: Look, x: float, y: float, radius_px: float = 4.5, *, seed: bool = False) -> Markup:
    """The look's shape; of one seed it is small and hollow."""
    r = radius_px * (0.6 if seed else 1.0)
    class_ = f"{look.class_} {'seed' if seed or look.shape == 'ring' else 'mark'}"
    if look.shape in ("circle", "ring"):
        return tag("circle", cx=x, cy=y, r=r, class_=class_)
    if look.shape in ("cross", "plus"):
        turn = math.pi / 4 if look.shape == "cross" else 0.0
        arms = [
            (r * 1.2 * math.cos(turn + k * math.pi / 2), r * 1.2 * math.sin(turn + k * math.pi / 2))
            for k in range(4)
        ]
        path = " ".join(f"M{x:.2f} {y:.2f}L{x + dx:.2f} {y + dy:.2f}" for dx, dy in arms)
        return tag("path", d=path, class_=f"{look.class_} stroke")
    corners = {
        "square": (4, 45, 1.25),
        "triangle": (3, -90, 1.3),
        "diamond": (4, 0, 1.3),
        "wedge": (3, 90, 1.3),
    }
    count, turn_degrees, size = corners[look.shape]
    angles = [math.radians(turn_degrees + k * 360 / count) for k in range(count)]
    points = " ".join(f"{x + r * size * math.cos(a):.2f},{y + r * size * math.sin(a):.2f}" for a in angles)
    return tag("polygon", points=points, class_=class_)


def key(look: Look) -> Markup:
    """A look as a small picture beside a name in a table."""
    return tag(
        "svg", marker(look, 7, 7), viewBox="0 0 14 14", class_="key", aria_hidden="true", width=14, height=14
    )
