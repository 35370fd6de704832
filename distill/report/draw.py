"""The figures of a report as SVG: each chart by the function that draws its class."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from kdcache.distill.report.canvas import Canvas, Drawing, draw_with
from kdcache.distill.report.charts import BarChart, ClassChart, DotChart, LineChart, RankChart
from kdcache.distill.report.draw_lines import paint_lines
from kdcache.distill.report.draw_rows import paint_bars, paint_classes, paint_dots, paint_ranks
from kdcache.distill.report.model import Figure

logger = logging.getLogger(__name__)

PAINTERS: Mapping[type, Callable[[Any], Canvas]] = {
    LineChart: paint_lines,
    DotChart: paint_dots,
    BarChart: paint_bars,
    ClassChart: paint_classes,
    RankChart: paint_ranks,
}


def draw(figure: Figure) -> Drawing | None:
    """The drawing of a figure. None, with a line in the log, if drawing fails: a finished run is not lost for a picture."""
    try:
        return draw_with(lambda: PAINTERS[type(figure.chart)](figure.chart), figure.name, figure.alt)
    except Exception as error:  # noqa: BLE001
        logger.warning("the figure %r could not be drawn: %s: %s", figure.title, type(error).__name__, error)
        return None
