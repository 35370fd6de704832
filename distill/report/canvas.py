"""A drawing on matplotlib that becomes one SVG, for a page in variables of its colours or for a file of its own.

Sizes are CSS pixels: a point of matplotlib's at 72 dpi. Colours go in as a rare red with the place of a name of the palette
in its last byte, and come out as `var(--name)` or as that name's light colour. Text stays text.
"""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Affine2D

from kdcache.distill.report.model import MINUS
from kdcache.distill.report.styles import LIGHT, Style

FONT_PX, SMALL_PX = 13.0, 12.0
CHARACTER_PX = 7.6  # of a wide sans at FONT_PX: what a reader's font takes is not known
LONGEST_LABEL = 24  # characters
LONGEST_LINE = 18  # of a label that has a comma: what follows goes below
LONGEST_TITLE = 44  # of an axis
LINE_PX = 16.0  # between labels
SECOND_LINE_PX = 13.0  # from the first line of a label

_NAMES: Final = tuple(LIGHT)
_SETTINGS: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x"
    "axes.unicode_minus": True,
    "path.simplify": False,
    "lines.scale_dashes": False,
}
_SIZES: Final = {
    "s": 0.95,
    "D": 0.85,
    "^": 1.1,
    "v": 1.1,
    "X": 1.25,
    "P": 1.25,
    "*": 1.9,
}  # equally large to the eye
_NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))
_FONT: Final = 'system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif'


def paint(name: str) -> str:
    """The colour of a name of the palette, as matplotlib takes it."""
    return f"#fe01{_NAMES.index(name):02x}"


def shortened(text: str, longest: int = LONGEST_LABEL) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def label_lines(label: str) -> list[str]:
    """A label on one line; a long one with a comma on two, as in "logit" and "teacher at every step"."""
    first, _, second = label.partition(", ")
    return [label] if len(label) <= LONGEST_LINE or not second else [first, second]


def width_px(texts: Sequence[str]) -> float:
    """Space for the longest line of some labels."""
    lines = (shortened(line) for text in texts for line in label_lines(text))
    return CHARACTER_PX * max(map(len, lines), default=0)


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG whose colours are names still."""

    body: str  # what is inside of the svg element
    width: float
    height: float
    alt: str

    def inline(self) -> str:
        """For a page: its style sheet says what the colours are."""
        body = _PAINT.sub(lambda found: f"{found[1]}var(--{_NAMES[int(found[2], 16)]})", self.body)
        return f'<svg {self._size} role="img" aria-label="{escape(self.alt)}">{body}</svg>'

    def standalone(self) -> str:
        """For a file: light colours on white."""
        body = _PAINT.sub(lambda found: found[1] + LIGHT[_NAMES[int(found[2], 16)]], self.body)
        namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return (
            f'<svg {namespaces} {self._size} role="img" style="background:{LIGHT["paper"]};font-family:'
            f'{escape(_FONT)}">\n<title>{escape(self.alt)}</title>\n'
            f"<style>*{{stroke-linejoin:round;stroke-linecap:butt}}</style>\n{body}</svg>\n"
        )

    @property
    def _size(self) -> str:
        return f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" height="{self.height:g}"'


class Canvas:
    """A matplotlib figure of some pixels with a few words of what all charts need."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._tooltips: list[str] = []

    def axes(self, left: float, right: float, top: float, bottom: float) -> Axes:
        """A plot area between pixels, y counted from the top; bare apart from what the chart adds."""
        share = (left / self.width, 1 - bottom / self.height)
        axes = self.figure.add_axes((*share, (right - left) / self.width, (bottom - top) / self.height))
        axes.patch.set_visible(False)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(paint("muted"))
            spine.set_linewidth(1)
        axes.tick_params(which="both", length=0, labelsize=SMALL_PX, labelcolor=paint("muted"), pad=5)
        axes.set_axisbelow(True)
        return axes

    def grid(self, axes: Axes, axis: Any) -> None:
        axes.grid(axis=axis, color=paint("rule"), linewidth=1, clip_on=False)

    def tooltip(self, text: str) -> str:
        """The gid of an artist that says more when it is pointed at."""
        self._tooltips.append(text)
        return f"tip{len(self._tooltips) - 1}."

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        colour: str = "ink",
        anchor: str = "left",
        size: float = FONT_PX,
        bold: bool = False,
        longest: int = LONGEST_LABEL,
    ) -> None:
        """One line around y, in pixels from the top left; a long one is cut, with the whole as its tooltip."""
        short = shortened(text, longest)
        drawn = self.figure.text(
            x / self.width,
            1 - y / self.height,
            _printable(short),
            color=paint(colour),
            ha=anchor,
            va="center_baseline",
            fontsize=size,
            fontweight="bold" if bold else "normal",
        )
        if short != text:
            drawn.set_gid(self.tooltip(text))

    def label(
        self,
        x: float,
        y: float,
        label: str,
        *,
        colour: str = "ink",
        anchor: str = "left",
        longest: int = LONGEST_LABEL,
    ) -> None:
        """A name around y, on one line or two; each is cut beyond `longest` characters."""
        first, *more = label_lines(label)
        up = SECOND_LINE_PX / 2 * len(more)
        self.text(x, y - up, first, colour=colour, anchor=anchor, longest=longest)
        for second in more:
            small = int(longest * FONT_PX / SMALL_PX)
            self.text(x, y + up, second, anchor=anchor, size=SMALL_PX, colour="muted", longest=small)

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        *,
        colour: str = "muted",
        width: float = 1.0,
        **style: Any,
    ) -> None:
        """A polyline in pixels from the top left, over everything."""
        across, up = [x / self.width for x in xs], [1 - y / self.height for y in ys]
        self.figure.add_artist(Line2D(across, up, color=paint(colour), linewidth=width, **style))

    def mark(self, x: float, y: float, style: Style, size: float = 8.0) -> None:
        """A style's marker at a pixel."""
        self.line([x], [y], colour=style.colour, **marker_style(style, size))

    def finish(self, name: str, alt: str) -> Drawing:
        text = io.StringIO()
        self.figure.savefig(text, format="svg", metadata=_NO_METADATA, transparent=True)
        return Drawing(_cleaned(text.getvalue(), name, self._tooltips), self.width, self.height, alt)


def draw_with(painter: Callable[[], Canvas], name: str, alt: str) -> Drawing:
    """The drawing that a painter makes. `name` is unique on the page: it tells apart what the SVGs refer to."""
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's own fonts lack glyphs that the reader's have
        return painter().finish(name, alt)


def marker_style(style: Style, size: float = 7.0, *, seed: bool = False) -> dict[str, Any]:
    """Of a seed it is small and hollow."""
    hollow = seed or style.hollow
    return {
        "marker": style.marker,
        "markersize": size * _SIZES.get(style.marker, 1.0) * (0.6 if seed else 1.0),
        "markerfacecolor": paint("paper" if hollow else style.colour),
        "markeredgecolor": paint(style.colour if hollow else "paper"),
        "markeredgewidth": 1.4 if hollow else 0.6,
        "linestyle": "none",
    }


def key(style: Style) -> str:
    """A style as a small picture beside a name."""
    shape = MarkerStyle(style.marker)
    size = 9 * _SIZES.get(style.marker, 1.0)
    outline = shape.get_path().transformed(
        shape.get_transform() + Affine2D().scale(size, -size).translate(7, 7)
    )
    corners: Any = outline.to_polygons(closed_only=False)
    path = "".join("M" + " ".join(f"{x:.2f},{y:.2f}" for x, y in polygon) + "Z" for polygon in corners)
    inside, edge, width = ("paper", style.colour, 1.4) if style.hollow else (style.colour, "paper", 0.8)
    paints = f"fill:var(--{inside});stroke:var(--{edge});stroke-width:{width}"
    return (
        f'<svg class="key" viewBox="0 0 14 14" aria-hidden="true"><path d="{path}" style="{paints}"/></svg>'
    )


def tick_text(value: float, _: object = None) -> str:
    """A tick as it is read: 40000 as 40k."""
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 10):g}"
    return text.replace("-", MINUS)


def set_ticks(axis: Any, logarithmic: bool, ticks: Mapping[float, str] | None) -> None:
    """Round numbers, or those given with their texts."""
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if ticks is not None:
        axis.set_major_locator(FixedLocator(list(ticks)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: ticks.get(value, tick_text(value))))
        return
    low, high = axis.get_view_interval()
    few = high / low < 50 if logarithmic else False
    axis.set_major_locator(
        LogLocator(subs=(1, 2, 5) if few else (1,)) if logarithmic else MaxNLocator(6, steps=[1, 2, 5, 10])
    )
    axis.set_major_formatter(FuncFormatter(tick_text))


def axis_title(**more: Any) -> dict[str, Any]:
    return {"colour": "muted", "size": SMALL_PX, "longest": LONGEST_TITLE, **more}


_PAINT: Final = re.compile(r"((?:fill|stroke): )#fe01([0-9a-f]{2})")
_STYLE: Final = re.compile(r"<defs>\s*<style.*?</style>\s*</defs>", re.DOTALL)
_TIP: Final = re.compile(r'<g id="tip(\d+)\.">')
_GROUP_ID: Final = re.compile(r'<g id="[^"]*"')
_REFERENCE: Final = re.compile(r'(id="|xlink:href="#)([a-z][0-9a-f]{8,})')
_FAMILY: Final = re.compile(r" font-family: [^\";]*(?:;|(?=\"))")


def _cleaned(svg: str, name: str, tooltips: Sequence[str]) -> str:
    """What is inside of the svg element, without what would act on other elements of a page."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = _STYLE.sub("", body)  # its rules would hold for the whole page
    body = _TIP.sub(lambda found: f"<g><title>{escape(tooltips[int(found[1])])}</title>", body)
    body = _GROUP_ID.sub("<g", body)  # figure_1, axes_1: the same in every drawing
    body = _REFERENCE.sub(lambda found: f"{found[1]}{escape(name)}-{found[2]}", body)
    return re.sub(r"\s*\n\s*", "\n", _FAMILY.sub("", body))


def _printable(text: str) -> str:
    """XML has no place for control characters and half surrogates."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
