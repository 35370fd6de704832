"""`kdcache fidelity`: what the codecs of a store lost, measured against its teacher.

kdcache fidelity                                                  # the home's newest store, its public teacher
kdcache fidelity STORE --weights teacher.safetensors --student runs/none-pspnet_resnet18 --out fidelity
"""

from typing import Any

import click

from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console


@options.command(
    examples=[
        "kdcache fidelity",
        "kdcache fidelity STORE --weights teacher.safetensors --out fidelity",
        "kdcache fidelity --student runs/none-pspnet_resnet18 --no-rates",
    ]
)
@click.argument("store", required=False)
@options.home_option
@options.origin_options
@option(
    "--entries",
    group="length",
    type=options.COUNT,
    default=16,
    help="Number of entries to measure, spread over the store.",
)
@option(
    "--student",
    group="student",
    metavar="RUN|FILE",
    help="A student in the middle of its training: compare its gradients with exact and with stored targets.",
)
@option(
    "--rates/--no-rates",
    group="length",
    default=True,
    help="Measure all other codecs on the same entries too.",
)
@option(
    "--out",
    group="output",
    metavar="DIR",
    help="Folder for a report with tables and pictures.",
    show_default="no report",
)
@options.device_option
@options.json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Measure what the codecs of STORE lost: KL divergence, classes kept, feature error, and the effect on gradients.

    STORE is a URL or a name under the home; without it, the newest store of the home. The teacher runs again, in float32,
    on some entries. Exit codes: 10 no such store, 11 the teacher or the images are not the store's, 13 not found.
    """
    console.starting("loading PyTorch ...")
    from accelerate import PartialState

    from kdcache.cache.store.reader import StoreReader
    from kdcache.cache.store.stored_images import StoredImages
    from kdcache.cli.home import describe, find_store
    from kdcache.cli.origins import open_images, open_teacher
    from kdcache.distill.report.terminal import show
    from kdcache.distill.students.student import load_student
    from kdcache.distill.study.fidelity import study_store
    from kdcache.distill.study.report import make_report, study_cautions, write_study

    found = find_store(given["home"], given["store"])
    reader = StoreReader(found.url, sorted(found.spec.targets), crops=True)
    device = PartialState(cpu=given["device"] == "cpu").device
    images = StoredImages(reader) if reader.has_crops else open_images(found.spec, given["data_root"])
    teacher = open_teacher(found.spec, given["teacher"], given["weights"], device)
    student = load_student(given["student"], device) if given["student"] else None
    with console.progress("fidelity") as progress:
        study = study_store(
            reader,
            images,
            teacher,
            count=given["entries"],
            student=student,
            with_rates=given["rates"],
            progress=progress,
        )
    report = write_study(study, images.classes, given["out"], describe(found)) if given["out"] else None
    if console.json:
        console.document(
            {
                **study.to_dict(),
                "cautions": study_cautions(study),
                "report": None if report is None else str(report),
            }
        )
        return
    show(make_report(study, images.classes, describe(found)), console)
    if report is not None:
        console.line(f"report: {report}")
