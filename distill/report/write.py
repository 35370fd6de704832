"""A report as files: the page, Markdown with figures beside it, JSON, and CSV if the report has a sheet.

FOLDER/report.html  FOLDER/report.md  FOLDER/report.json  FOLDER/report.csv  FOLDER/figures/NAME.svg
"""

from pathlib import Path

from kdcache.cache.errors import KDCacheError
from kdcache.distill import runfolder
from kdcache.distill.report.data import csv_text, document
from kdcache.distill.report.draw import draw
from kdcache.distill.report.html import html
from kdcache.distill.report.markdown import FIGURES, markdown
from kdcache.distill.report.model import Report

REPORT = "report"


def write_files(report: Report, folder: Path, *, name: str = REPORT, data_name: str | None = None) -> Path:
    """Write a report into a folder, which is made; the path of its Markdown. `data_name` is that of JSON and CSV.

    Raises:
        KDCacheError: writing to the folder fails.
    """
    data_name = data_name or name
    drawings = {figure.name: draw(figure) for figure in report.figures}
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for each, drawing in drawings.items():
            if drawing is not None:
                (folder / FIGURES / f"{each}.svg").write_text(drawing.standalone(), encoding="utf-8")
        page = html(report, lambda figure: drawn.inline() if (drawn := drawings[figure.name]) else None)
        (folder / f"{name}.html").write_text(page, encoding="utf-8", errors="xmlcharrefreplace")
        text = markdown(report, folder)
        (folder / f"{name}.md").write_text(text, encoding="utf-8", errors="replace")
        if report.sheet is not None:
            table = csv_text(report.sheet, report.all_cautions)
            (folder / f"{data_name}.csv").write_text(table, encoding="utf-8", errors="replace")
    except OSError as error:
        raise KDCacheError(f"cannot write to {folder}: {error.strerror}", hint="--out DIR") from None
    runfolder.write_json(folder / f"{data_name}.json", document(report))
    return folder / f"{name}.md"
