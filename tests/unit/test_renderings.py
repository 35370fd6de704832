"""Renderings of one report: all of them carry its cautions, and text from outside stays text."""

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.cache.errors import KDCacheError
from kdcache.distill.report.charts import Bar, BarChart
from kdcache.distill.report.data import csv_text, document
from kdcache.distill.report.html import html
from kdcache.distill.report.markdown import markdown
from kdcache.distill.report.model import (
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Links,
    Paragraph,
    Report,
    Section,
    Table,
    interval_text,
    percent,
    points,
)
from kdcache.distill.report.styles import PLAIN
from kdcache.distill.report.terminal import show
from kdcache.distill.report.write import write_files

COLUMNS = [
    Column("method"),
    Column("mIoU %", "percent", key="miou"),
    Column("over none", "interval", key="over", brief=False),
]
TABLE = Table.of(
    "runs",
    "After 1 h",
    COLUMNS,
    [
        [Cell("logit", style=PLAIN), 0.601, (0.1, 0.05, 0.15)],
        ["none", Cell(0.5, coarse=True), None],
    ],
    caution="The table shows nothing reliable.",
)
FIGURE = Figure(
    name="bars",
    title="Bars",
    caption="Of one thing.",
    chart=BarChart(bars=[Bar(name="a", values=[1.0], text="1")], x_title="points"),
    alt="one bar",
)
REPORT = Report(
    title="A comparison",
    lead=["logit came first."],
    about="How to read it.",
    cautions=["A step took 182 % longer at the end.", "The teacher is <weak> & alone."],
    facts=Facts([("device", "cpu"), ("none", None)]),
    sections=[
        Section("Rankings", [FIGURE, TABLE], brief=True),
        Section(
            "More",
            [Paragraph("text"), Code(["ls"]), Links([("run", "../run")])],
        ),
        Section("Empty", []),
    ],
    data={"runs": [1]},
    sheet=TABLE,
)


class Terminal:
    """A console that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)

    def table(self, header: object, rows: object, *, optional: object = ()) -> None:
        self.lines.append(repr((header, rows)))
        self.optional = optional


class Parsed(HTMLParser):
    """Start tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data


def in_terminal(report: Report) -> str:
    terminal = Terminal()
    show(report, terminal)
    return "\n".join(terminal.lines)


def page(report: Report) -> str:
    return html(report, lambda figure: None)


def test_every_rendering_has_every_caution(tmp_path: Path) -> None:
    write_files(REPORT, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    with open(tmp_path / "report.csv") as file:
        lines = list(csv.DictReader(file))
    renderings = {
        "html": Parsed((tmp_path / "report.html").read_text()).text,
        "markdown": re.sub(r"\\(.)", r"\1", (tmp_path / "report.md").read_text()),
        "json": "\n".join(found["cautions"]),
        "terminal": in_terminal(REPORT),
        "csv": lines[0]["cautions"],
    }
    assert len(REPORT.all_cautions) == 3
    for name, text in renderings.items():
        for caution in REPORT.all_cautions:
            assert caution in text, (name, caution)


def test_a_report_without_cautions_has_none_anywhere() -> None:
    calm = replace(REPORT, cautions=[], sections=[])
    assert "aution" not in Parsed(page(calm)).text and "aution" not in markdown(calm, Path())
    assert "aution" not in in_terminal(calm) and document(calm)["cautions"] == []


def test_numbers_become_text_once() -> None:
    assert TABLE.texts == [["logit", "60.10", "+10.00 (5.00 to 15.00)"], ["none", "~50", "-"]]
    assert (percent(None), percent(0.601, True), points(-0.1)) == ("-", "~60", "\N{MINUS SIGN}10.00")
    assert interval_text((0.1, None, None)) == "+10.00"
    assert interval_text((0.1, -0.02, 0.2), True) == "~+10 (\N{MINUS SIGN}2 to 20)"


def test_the_files_of_a_report(tmp_path: Path) -> None:
    path = write_files(REPORT, tmp_path, data_name="standings")
    names = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert names == {"report.md", "report.html", "standings.json", "standings.csv", "figures/bars.svg"}
    lines = path.read_text().splitlines()
    assert "| logit | 60.10 | +10.00 (5.00 to 15.00) |" in lines and "| device | cpu |" in lines
    assert (
        "![one bar](figures/bars.svg)" in lines and "## Empty" not in lines and "- [run](../run.md)" in lines
    )
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_data_is_not_rounded() -> None:
    found = json.loads(json.dumps(document(REPORT), allow_nan=False))
    assert found["runs"] == [1] and [section["title"] for section in found["sections"]] == [
        "Rankings",
        "More",
    ]
    assert found["sections"][0]["blocks"][1]["rows"][0] == {
        "method": "logit",
        "miou": 0.601,
        "over": [0.1, 0.05, 0.15],
    }
    (first, second) = csv.DictReader(io.StringIO(csv_text(TABLE, [])))
    assert (
        first == {"method": "logit", "miou": "0.601", "over": "0.1", "cautions": ""} and second["over"] == ""
    )
    odd = replace(REPORT, data={"x": [float("nan"), 1.0]})
    assert document(odd)["x"] == [None, 1.0]


def test_a_terminal_shows_brief_tables_and_columns() -> None:
    text = in_terminal(REPORT)
    assert "'60.10'" in text and "over none" not in text and "../run" not in text


def test_columns_that_agree_are_merged_with_a_sentence() -> None:
    columns = [
        Column("method"),
        *(Column(name, "duration") for name in ("alone", "whole", "shared")),
    ]
    rows = [["a", 3600.0, 7200.0, 3601.0], ["b", 3600.0, 3600.0, 3602.0]]
    merged = Table.of("t", "Times", columns, rows).merged(["alone", "whole", "shared"])
    assert isinstance(merged, Table) and merged.header == ["method", "alone", "whole"]
    assert merged.note == '"shared" would read the same as "alone" in every row.' and merged.note in page(
        replace(REPORT, sections=[Section("s", [merged])])
    ).replace("&#34;", '"')
    alike = Table.of("t", "Times", columns, [["a", 3600.0, 3600.0, 3601.0]]).merged(
        ["alone", "whole", "shared"]
    )
    assert alike == Paragraph('Times: "whole" and "shared" would read the same as "alone" in every row.')
    different = Table.of("t", "Times", columns, [["a", 1.0, 2.0, 3.0]])
    assert different.merged(["alone", "whole", "shared"]) is different


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1))
def test_any_text_stays_text(text: str) -> None:
    table = Table.of(text, text, [Column(text), Column(text)], [[text, text]], note=text, caution=text)
    blocks = [
        *(
            Paragraph(text),
            Facts([(text, text)], title=text),
            table,
            replace(FIGURE, alt=text, title=text),
        ),
        *(Code([text], title=text), Links([(text, text)])),
    ]
    report = Report(
        title=text, lead=[text], about=text, cautions=[text], sections=[Section(title=text, blocks=blocks)]
    )
    same = Report(title="x", lead=["x"], about="x", cautions=["x"], sections=[])
    plain = [Paragraph("x"), Facts([("x", "x")], title="x"), replace(TABLE, rows=[], note="x")]
    assert set(Parsed(page(report)).tags) <= {
        *Parsed(page(replace(same, sections=[Section("x", plain)]))).tags,
        *("figure", "figcaption", "b", "pre", "code", "a", "li", "ul", "td", "th", "tr", "div", "h3"),
    }
    rows = [line for line in markdown(report, Path()).splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)


def test_a_folder_that_takes_no_files_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KDCacheError, match="cannot write to"):
        write_files(REPORT, tmp_path / "file")


def test_a_narrow_terminal_leaves_out_the_last_columns_first() -> None:
    columns = [
        Column("method"),
        Column("rank", "count", narrow=False),
        Column("mIoU %", "percent"),
        Column("seeds", "count", brief=False, narrow=False),
        Column("steps", "count", narrow=False),
    ]
    table = Table.of("ranking", "After 1 h", columns, [["logit", 1, 0.6, 3, 100]])
    terminal = Terminal()
    show(replace(REPORT, sections=[Section("Rankings", [table], brief=True)]), terminal)
    assert terminal.optional == ["steps", "rank"]


def test_a_key_is_read_by_its_label_and_kept_in_data() -> None:
    table = Table.of(
        "ranking",
        "After 1 h",
        [Column("method", key="contender")],
        [[Cell("none-bank", label="none, stored views")]],
    )
    report = replace(REPORT, sections=[Section("Rankings", [table])], sheet=table)
    assert table.texts == [["none, stored views"]]
    row = {"contender": "none-bank", "label": "none, stored views"}
    assert document(report)["sections"][0]["blocks"][0]["rows"] == [row]
    assert csv_text(table, []).splitlines()[1] == "none-bank,"
