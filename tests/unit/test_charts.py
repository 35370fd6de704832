"""Charts: labels that keep apart, axes that fit their values and no more, and SVGs that can share a page."""

import re
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill.report.canvas import Drawing, key, tick_text
from kdcache.distill.report.charts import (
    PERCENT,
    Bar,
    BarChart,
    Chart,
    ClassChart,
    DotChart,
    DotRow,
    Limit,
    Line,
    LineChart,
    RankChart,
    RankColumn,
    clipped,
    is_near,
    padded,
    stretch_of,
)
from kdcache.distill.report.draw import draw
from kdcache.distill.report.draw_lines import spread
from kdcache.distill.report.model import Figure
from kdcache.distill.report.styles import LIGHT, PLAIN, Style, give_styles, style_of

LINES = LineChart(
    lines=[Line(name="logit", style=PLAIN, strokes=[[(1, 60.0), (2, 62.0)], [(1, 59.0), (2, 61.0)]])],
    x_title="steps",
    y_title="mIoU, %",
    limits=[Limit(name="teacher", at=63.0)],
    bounds=PERCENT,
)
DOTS = DotChart(
    rows=[DotRow(name="logit", style=PLAIN, mean=60, seeds=[59, 61], text="60.00", interval=(58, 62))],
    x_title="mIoU, %",
    stretch=(57, 63),
)
RANKS = RankChart(
    left=RankColumn(title="one", names=["a", "b"], texts=["2", "1"]),
    right=RankColumn(title="other", names=["b", "a"], texts=["2", "1"]),
    styles=give_styles(["a", "b"]),
)
CHARTS: dict[str, Chart] = {
    "lines": LINES,
    "dots": DOTS,
    "stacks": BarChart(
        bars=[Bar(name="logit", values=[1, 2], text="3 s")],
        parts={"data": "p0", "student": "p2"},
        x_title="seconds",
    ),
    "differences": BarChart(
        bars=[Bar(name="road", values=[-1.0], text="-1", seeds=[-2, 0])], x_title="points"
    ),
    "ranks": RANKS,
    "classes": ClassChart(classes=["road", "car"], iou={"a": [50.0, None]}, styles=give_styles(["a"])),
}


def drawn(chart: Chart, name: str = "figure", alt: str = "what is seen") -> Drawing:
    found = draw(Figure(name=name, title="Title", caption="", chart=chart, alt=alt))
    assert found is not None
    return found


def texts(chart: Chart) -> list[str]:
    root = ElementTree.fromstring(drawn(chart).standalone())
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


@given(st.lists(st.floats(-50, 450), min_size=1, max_size=30))
def test_labels_keep_apart_in_their_order(wanted: list[float]) -> None:
    places = spread(wanted, [16] * len(wanted), 20, 400)
    ordered = [places[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    gap = min(16, 380 / max(1, len(wanted) - 1))
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(ordered))
    assert ordered[0] >= 20 - 1e-6 and ordered[-1] <= 400 + 1e-6


def test_labels_with_space_stay_where_they_are() -> None:
    assert spread([300, 50, 100], [16, 16, 16], 20, 400) == [300, 50, 100]
    assert spread([100, 100], [16, 16], 20, 400) == [92, 108]
    assert spread([100, 100], [30, 16], 20, 400) == [88.5, 111.5]  # one of two lines


@pytest.mark.parametrize("values", [[0.0], [70.0], [70.0, 70.0], [-1.0, 3.0]])
def test_a_stretch_has_a_width(values: list[float]) -> None:
    low, high = padded(values)
    assert low < min(values) and high > max(values)


def test_a_share_has_no_axis_and_no_interval_beyond_0_and_100_percent() -> None:
    assert padded([1.0, 99.0], bounds=PERCENT) == (0.0, 100.0)
    assert padded([0.0, 0.0], least=0.5, bounds=PERCENT) == (0.0, 0.25)
    assert clipped((-10.0, 40.0), PERCENT) == (0.0, 40.0)
    wide = DotRow(name="a", style=PLAIN, mean=5, seeds=[1, 9], text="", interval=(0, 56))
    assert stretch_of([wide], [], PERCENT) == (0.0, pytest.approx(59.36))


def test_a_teacher_far_away_is_named_at_the_edge_and_squeezes_nothing() -> None:
    rows = [replace(DOTS.rows[0], name=str(n), mean=60 + n, seeds=[], interval=None) for n in range(3)]
    near, far = Limit(name="teacher", at=63.0), Limit(name="teacher", at=80.0)
    assert is_near(63, [60, 62]) and not is_near(80, [60, 62])
    assert stretch_of(rows, [near], PERCENT)[1] > 63
    low, high = stretch_of(rows, [far], PERCENT)
    assert high < 63 and 2 / (high - low) > 0.8  # the rows have their axis for themselves
    assert "teacher 80.00" in texts(DotChart(rows=rows, x_title="", stretch=(low, high), limits=[far]))
    assert "teacher 80.00" in texts(replace(LINES, limits=[far])) and "80" not in texts(
        replace(LINES, limits=[far])
    )
    assert "teacher" in texts(LINES)


def test_a_long_label_takes_two_lines_and_is_whole() -> None:
    long, short = "logit+feature, teacher at every step", "none, stored views"
    styles = give_styles([long, short])
    column = RankColumn(title="time", names=[long, short], texts=["60", "50"])
    rows = [replace(DOTS.rows[0], name=name) for name in styles]
    charts = [
        RankChart(left=column, right=column, styles=styles),
        replace(DOTS, rows=rows),
        BarChart(bars=[Bar(name=name, values=[1.0], text="1") for name in styles], x_title="points"),
        replace(LINES, lines=[replace(LINES.lines[0], name=name) for name in styles]),
        replace(LINES, limits=[Limit(name=long, at=99.0)]),
    ]
    for chart in charts[:-1]:
        said = texts(chart)
        assert {"logit+feature", "teacher at every step", short} <= set(said)
        assert not any("…" in text for text in said)
    assert {"logit+feature 99.00", "teacher at every step"} <= set(texts(charts[-1]))


def test_names_of_scattered_points_have_leads_only_if_all_are_level() -> None:
    """A lead is a line of 0.8 pixels; a name level with its point has one."""

    def leads(*points: tuple[float, float]) -> int:
        lines = [Line(name=str(n), style=style_of(n), strokes=[[point]]) for n, point in enumerate(points)]
        return drawn(LineChart(lines=lines, x_title="x", y_title="y")).body.count("stroke-width: 0.8")

    assert leads((1.0, 50.0), (2.0, 60.0)) == 2
    assert leads((1.0, 50.0), (2.0, 50.1), (3.0, 60.0)) == 0


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_an_svg_is_the_same_every_time_and_keeps_its_text(chart: Chart) -> None:
    one, other = drawn(chart), drawn(chart)
    assert one.standalone() == other.standalone()
    assert texts(chart) and "<image" not in one.body and "<!--" not in one.body


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_svgs_of_one_page_do_not_act_on_each_other(chart: Chart) -> None:
    one, other = drawn(chart, "one").inline(), drawn(chart, "other").inline()
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (one, other)]
    assert not ids[0] & ids[1]
    assert all(f'id="{name}"' in one for name in re.findall(r'href="#([^"]*)"', one))
    assert "<style" not in one and "url(" not in one and "http" not in one


def test_a_page_has_variables_and_a_file_has_light_colours() -> None:
    drawing = drawn(DOTS)
    colour = f"fill: {LIGHT['c0']}"
    assert "fill: var(--c0)" in drawing.inline() and colour not in drawing.inline()
    assert colour in drawing.standalone() and "var(" not in drawing.standalone()
    assert "#fe01" not in drawing.inline() + drawing.standalone()
    assert 'aria-label="a &lt; b"' in drawn(DOTS, alt="a < b").inline()
    assert "fill:var(--paper);stroke:var(--ink)" in key(Style(colour="ink", hollow=True))


@pytest.mark.parametrize(
    "name", ["$\\mathbf{oops$", "<b>&\"'", "道路 \N{MOTORWAY}", "a\nb\x00\x1b", "\ud800", "a" * 40]
)
def test_any_name_can_be_drawn(name: str) -> None:
    said = texts(replace(LINES, lines=[replace(LINES.lines[0], name=name)]))
    if name.isprintable():
        assert name in said or name[:23] + "…" in said


def test_a_long_name_is_whole_in_its_tooltip() -> None:
    long = replace(DOTS, rows=[replace(DOTS.rows[0], name="a" * 40)])
    assert f"<title>{'a' * 40}</title>" in drawn(long).inline()


def test_a_figure_that_cannot_be_drawn_is_logged_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    empty = replace(LINES, lines=[replace(LINES.lines[0], strokes=[])])
    with caplog.at_level("WARNING", logger="kdcache"):
        assert draw(Figure(name="f", title="Curves", caption="", chart=empty, alt="")) is None
    assert "the figure 'Curves' could not be drawn" in caplog.text


def test_numbers_are_short() -> None:
    assert [tick_text(value) for value in (40000, 2.5, -0.5)] == ["40k", "2.5", "\N{MINUS SIGN}0.5"]
