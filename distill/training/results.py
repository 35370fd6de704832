"""What a run writes: checkpoints and evaluations during training, then the student's file, its scores and the report."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.images.datasets import SegmentationDataset
from kdcache.distill import runfolder
from kdcache.distill.report.run_report import write_report
from kdcache.distill.runfolder import CHECKPOINT, SCORES, STUDENT
from kdcache.distill.scoring.evaluate import EvalMode, eval_mode, evaluate_confusion
from kdcache.distill.scoring.samples import SamplePrediction, predict_samples
from kdcache.distill.scoring.scores import Scores, score_confusion
from kdcache.distill.students.student import save_student
from kdcache.distill.training.checkpoint import save_state
from kdcache.distill.training.run import Run

DOCUMENT = ("steps", "planned_steps", "training_s", "scores")  # the fields of a RunResult in scores.json


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """The result of a run."""

    out: str
    steps: int
    planned_steps: int
    """The length of the learning-rate schedule. With `--budget` the clock may end the run before."""
    training_s: float
    scores: Mapping[str, Any] | None
    """Scores.to_dict() of the last checkpoint on the evaluation split; None without an evaluation split."""
    was_complete: bool
    """The run was finished already, and this call did nothing."""

    @property
    def ended_by_clock(self) -> bool:
        """True if the time was up before the end of the schedule."""
        return self.steps < self.planned_steps


def save_checkpoint(run: Run) -> None:
    """Save the training state and the current student into the run's checkpoint folder.

    Raises:
        KDCacheError: see checkpoint.save_state.
    """
    if not run.accelerator.is_main_process:
        return
    scaler = run.accelerator.scaler
    state = {
        "metrics_bytes": run.metrics.sync(),  # resuming cuts metrics.jsonl back to here
        "model": run.distiller.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "rival_optimisers": [optimiser.state_dict() for optimiser in run.adversary_optimisers],
        "scaler": scaler.state_dict() if scaler is not None else {},
        "budget": run.budget.state_dict(),
        "state": asdict(run.state),
    }
    save_state(
        run.folder / CHECKPOINT, run.state.step, state, write_more=lambda path: _save_student(run, path)
    )


def evaluate_student(run: Run) -> Scores | None:
    """Scores of the current student, also written to the metrics; None without an evaluation split.

    All processes must call this: each takes its share of the images.
    """
    accelerator, dataset = run.accelerator, run.inputs.evaluation
    if dataset is None:
        return None
    began = time.perf_counter()
    confusion = evaluate_confusion(
        run.distiller.student,
        dataset,
        range(accelerator.process_index, len(dataset), accelerator.num_processes),
        normalisation=run.distiller.normalisation,
        mode=_eval_mode(run, dataset),
        device=accelerator.device,
        progress=lambda done, images, _: report_progress(run, f"evaluating, {done} of {images} images"),
    )
    scores = score_confusion(accelerator.reduce(confusion, "sum"), dataset.classes, images=len(dataset))
    means = {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
    times = {"training_s": run.state.training_s, "seconds": time.perf_counter() - began}
    run.metrics.write("eval", run.state.step, {**means, **times})
    return scores


def finish(run: Run) -> RunResult:
    """Write the student's file, its scores and the report: of the last step, not of the best. All processes call this."""
    scores, planned_steps = evaluate_student(run), run.budget.total_steps
    assert planned_steps is not None  # set at the latest when the time is up
    result = RunResult(
        out=run.config.out,
        steps=run.state.step,
        planned_steps=planned_steps,
        training_s=run.state.training_s,
        scores=scores.to_dict() if scores else None,
        was_complete=False,
    )
    if run.accelerator.is_main_process:
        document = {name: value for name, value in asdict(result).items() if name in DOCUMENT}
        run.metrics.sync()
        _save_student(run, run.folder)
        write_report(run.folder, result=document, samples=_samples(run), classes=run.inputs.images.classes)
        # Last, because this file marks the run as complete.
        runfolder.write_json(run.folder / SCORES, document)
    run.accelerator.wait_for_everyone()
    return result


def report_progress(run: Run, note: str) -> None:
    """Pass the step, the total (0 if unknown) and a note to the caller's progress function."""
    run.progress(run.state.step, run.budget.total_steps or 0, note)


def _save_student(run: Run, folder: Path) -> None:
    config, images = run.config, run.inputs.images
    save_student(
        folder / STUDENT,
        run.distiller.student,
        run.distiller.normalisation,
        dataset=images.name,
        classes=images.classes,
        run={"method": config.method, "source": config.source, "step": run.state.step, **run.inputs.identity},
    )


def _eval_mode(run: Run, dataset: SegmentationDataset) -> EvalMode:
    policy = run.inputs.policy
    return eval_mode(dataset.name, run.config.eval_mode, (policy.crop_height_px, policy.crop_width_px))


def _samples(run: Run) -> list[SamplePrediction]:
    dataset, distiller = run.inputs.evaluation, run.distiller
    if dataset is None:
        return []
    mode, device = _eval_mode(run, dataset), run.accelerator.device
    return predict_samples(distiller.student, distiller.normalisation, dataset, mode=mode, device=device)
