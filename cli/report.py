"""`kdcache report`: a run's report, or several runs in one table.

kdcache report runs/none-pspnet_resnet18 runs/logit-pspnet_resnet18 --out runs/report
"""

from pathlib import Path
from typing import Any

import click

from kdcache.cache.errors import NotFoundError, UsageError
from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console


@options.command(
    examples=[
        "kdcache report runs/logit-pspnet_resnet18",
        "kdcache report runs/none-pspnet_resnet18 runs/logit-pspnet_resnet18",
        "kdcache report runs/* --teacher teacher.json --out runs/report",
    ]
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@option(
    "--teacher",
    group="data",
    metavar="RUN|FILE",
    help="The teacher's scores: the folder of its run, or a file with the output of `kdcache evaluate --json`.",
)
@option(
    "--out",
    group="output",
    metavar="DIR",
    help="Folder of the report of several runs.",
    show_default="report, beside the first run",
)
@options.json_option
@click.pass_obj
def command(console: Console, runs: tuple[str, ...], teacher: str | None, out: str | None) -> None:
    """Write the report of one RUN again, or one report of several: scores, steps, time, figures.

    A RUN is a folder that `kdcache distill` wrote. With --out or --teacher one RUN gets a report of the second kind too.
    """
    from kdcache.distill.report.comparison import comparison_report
    from kdcache.distill.report.record import RunRecord
    from kdcache.distill.report.run_report import run_report
    from kdcache.distill.report.terminal import show
    from kdcache.distill.report.write import write_files

    scores = read_teacher_scores("--teacher", teacher) if teacher else None
    if len(runs) == 1 and not out and not teacher:
        folder = Path(runs[0])
        report = run_report(RunRecord.read(folder))
    else:
        folder = Path(out or Path(runs[0]).parent / "report")
        report = comparison_report(runs, folder, teacher=scores)
    written = write_files(report, folder)
    if console.json:
        console.document(
            {
                "report": str(written),
                "cautions": report.all_cautions,
                "runs": report.data["runs"],
                "teacher": scores,
            }
        )
        return
    show(report, console)
    console.line(f"report: {written}")


def read_teacher_scores(option: str, source: str) -> dict[str, Any]:
    """Name, mIoU, IoU by class and pixel accuracy out of a run's folder or a file of `evaluate --json`, which an option named."""
    from kdcache.distill.report.record import RunRecord
    from kdcache.distill.runfolder import read_json

    path, name = Path(source), "teacher"
    if path.is_file():
        scores = read_json(path)
    elif path.is_dir():
        run = RunRecord.read(path)
        scores, name = dict(run.scores or {}), f"teacher, {run.config['student']}"
    else:
        raise NotFoundError(
            f"{option} {source}: no such run or file",
            hint="a run's folder, or a file of `kdcache evaluate --teacher NAME --json`",
        )
    if not isinstance(scores.get("miou"), float):
        raise UsageError(
            f"{option} {source} has no mIoU",
            hint="name a finished run, or a file of `kdcache evaluate --json`",
        )
    known = {key: scores.get(key) for key in ("pixel_accuracy", "iou")}
    return {"name": name, "miou": scores["miou"], **known}
