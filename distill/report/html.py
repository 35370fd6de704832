"""A report as one HTML page that contains all it shows: no script, no network, no other file.

The page is page.html.j2 with page.css; every text in it is escaped. Its policy keeps a browser from fetching or running
anything, whatever a class or a run is called.
"""

import base64
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from kdcache.distill.report.canvas import key
from kdcache.distill.report.model import Figure, Report, cell_text
from kdcache.distill.report.styles import DARK, LIGHT

MEDIA_TYPES: Final = {".jpg": "image/jpeg", ".png": "image/png"}


def html(report: Report, svg: Callable[[Figure], str | None]) -> str:
    """The page. `svg` gives the drawing of a figure with colours as variables; its alternative text is shown for None."""
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    template = environment.from_string(_resource("page.html.j2"))
    return template.render(
        report=report,
        style=Markup(style_sheet()),
        svg=lambda figure: _markup(svg(figure)),
        key=lambda style: Markup(key(style)),
        cell_text=cell_text,
        data_uri=data_uri,
    ).lstrip()


def style_sheet() -> str:
    """The colours of light and dark, and the rules; paper is always light."""
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in of.items()) for of in (LIGHT, DARK))
    rules = _resource("page.css")
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{rules}"


def data_uri(path: Path) -> str:
    """A PNG or JPEG as part of the page."""
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _markup(svg: str | None) -> Markup | None:
    return None if svg is None else Markup(svg)


@cache
def _resource(name: str) -> str:
    return resources.files("kdcache.distill.report").joinpath(name).read_text()
