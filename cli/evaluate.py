"""`kdcache evaluate`: the scores of a checkpoint, a run or a teacher on a labelled split.

kdcache evaluate --checkpoint runs/logit-pspnet_resnet18
kdcache evaluate --teacher pspnet_resnet101 --dataset cityscapes
"""

from typing import TYPE_CHECKING, Any

import click

from kdcache.cache.errors import UsageError
from kdcache.cli import options
from kdcache.cli.options import option
from kdcache.cli.output import Console
from kdcache.distill.config import EVALUATION_MODES

if TYPE_CHECKING:
    from kdcache.distill.scoring.scores import Scores


@options.command(
    examples=[
        "kdcache evaluate --checkpoint runs/logit-pspnet_resnet18",
        "kdcache evaluate --teacher pspnet_resnet101 --dataset cityscapes --json > teacher.json",
    ]
)
@option(
    "--checkpoint",
    group="student",
    metavar="FILE|RUN",
    help="What to score: the folder of a run, or a checkpoint file of any code base that `kdcache build` reads.",
)
@option(
    "--teacher",
    group="data",
    metavar="NAME",
    type=options.teacher_name,
    help="Score this teacher instead, named as for `kdcache build`.",
)
@option(
    "--weights",
    group="data",
    metavar="PATH|URL|auto",
    help="The teacher's weights: a file, a URL, or `auto` for the public checkpoint.",
    show_default="auto",
)
@option(
    "--precision",
    group="machine",
    type=options.PRECISION,
    help="Precision of the teacher's arithmetic.",
    show_default="float32",
)
@options.dataset_options(required=False, split="val")
@option(
    "--mode",
    group="length",
    type=click.Choice(EVALUATION_MODES),
    default="whole",
    help="Evaluate whole images, or sliding windows.",
)
@option(
    "--crop", group="length", type=options.size, metavar="HxW", help="Size of a window, for --mode slide."
)
@option("--limit", group="length", type=options.COUNT, help="Score the first N images only.")
@options.device_option
@options.json_option
@click.pass_obj
def command(console: Console, /, **given: Any) -> None:
    """Score a checkpoint, a run or a teacher: mIoU, IoU by class, pixel accuracy.

    A student that kdcache trained names its own dataset, so you can leave --dataset out.
    """
    if (given["checkpoint"] is None) == (given["teacher"] is None):
        raise UsageError(
            "give one of --checkpoint and --teacher: what to score",
            hint="--checkpoint RUN, or --teacher pspnet_resnet101 --dataset cityscapes",
        )
    for name in ("weights", "precision"):
        if given["checkpoint"] is not None and given[name] is not None:
            raise UsageError(f"--{name} is the teacher's", hint="leave it out, or score a --teacher")
    if (given["mode"] == "slide") != (given["crop"] is not None):
        raise UsageError("--mode slide and --crop go together", hint="--mode slide --crop 512x1024")
    console.starting("loading PyTorch ...")
    scores = _score(console, given)
    if console.json:
        console.document(scores.to_dict())
    else:
        console.line(scores.table())


def _score(console: Console, given: dict[str, Any]) -> "Scores":
    from accelerate import PartialState

    from kdcache.cache.images.datasets import open_dataset
    from kdcache.cache.teachers.teacher import load_teacher
    from kdcache.distill.scoring.evaluate import eval_mode, evaluate
    from kdcache.distill.students.student import load_student

    device = PartialState(cpu=given["device"] == "cpu").device
    student = load_student(given["checkpoint"], device) if given["checkpoint"] else None
    name = given["dataset"] or (student and student.meta.get("dataset"))
    if not name:
        raise UsageError(
            "--dataset is missing, and the checkpoint does not name one", hint="--dataset cityscapes"
        )
    dataset = open_dataset(name, given["data_root"], given["split"])
    mode = eval_mode(dataset.name, given["mode"], given["crop"] or (0, 0))
    with console.progress("evaluate") as progress:
        if student:
            return evaluate(
                student.network,
                dataset,
                normalisation=student.normalisation,
                mode=mode,
                device=device,
                limit=given["limit"],
                progress=progress,
            )
        teacher = load_teacher(
            given["teacher"],
            weights=given["weights"] or "auto",
            dataset_name=dataset.name,
            classes=len(dataset.classes.names),
            device=device,
            precision=given["precision"] or "float32",
        )
        return evaluate(teacher, dataset, mode=mode, device=device, limit=given["limit"], progress=progress)
