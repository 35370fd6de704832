"""Training: one student, one method, one loop.

    accelerate launch -m kdcache.cli distill --method logit --store URL --steps 1000 --out runs/logit

`train` opens a run and finishes it, `fit` is the loop, `take_step` is one step; below them follow the things that the
loop does from time to time. Accelerate does mixed precision, several processes and gradient scaling. It does not touch
the order of the data: the seed alone determines the stream, and a process takes its slice of each step.

The process waits for the device only at a read-back, once in READ_BACK_STEPS steps (on a CPU: every step). All decisions
are made there, from numbers that are equal in all processes: stop, log, evaluate, save, and whether a loss is finite.
"""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast
from torch import Tensor

from kdcache.cache.errors import KDCacheError, TrainingError
from kdcache.cache.progress import Progress, silent
from kdcache.distill import runfolder
from kdcache.distill.clock import BACKWARD, COPY, FORWARD, OPTIMISER, OTHER, PARTS, WAIT, Clock, WaitWatch
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.loader import DeviceCopier
from kdcache.distill.data.targets import Batch
from kdcache.distill.losses.region import share_totals
from kdcache.distill.runfolder import SCORES
from kdcache.distill.schedule import learning_rate
from kdcache.distill.training.budget import WARM_UP_STEPS
from kdcache.distill.training.forecast import Forecast
from kdcache.distill.training.profile import Tracer
from kdcache.distill.training.results import (
    RunResult,
    evaluate_student,
    finish,
    report_progress,
    save_checkpoint,
)
from kdcache.distill.training.run import Run, make_accelerator, open_run
from kdcache.distill.training.stopping import StopRequest, on_sigterm
from kdcache.distill.training.stream import open_batches

# Steps between read-backs on a GPU. A read-back waits for the device, which then waits for the next launch.
READ_BACK_STEPS = 10

logger = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, progress: Progress = silent) -> RunResult:
    """Train a student as `config` says, or resume the run in its folder. Every process calls this.

    Args:
        resume: continue the run in the folder. A finished run is returned as it is.

    Raises:
        UsageError: the folder contains a run and `resume` is False, or a run with other options; the batch does not fit.
        StoreMismatchError: the store lacks a target, or store and dataset do not belong together.
        TrainingError: a loss is NaN or infinite, or a loader process died.
        KeyboardInterrupt: on SIGINT; and on SIGTERM, after the state is saved.
    """
    accelerator = make_accelerator(config)
    folder = Path(config.out)
    resumes = runfolder.contains_run(folder, config, resume=resume)
    accelerator.wait_for_everyone()  # no process writes into the folder before all have looked at it
    if resumes and (folder / SCORES).exists():
        return RunResult(out=config.out, was_complete=True, **runfolder.read_json(folder / SCORES))
    run = open_run(config, accelerator, progress)
    try:
        fit(run)
        return finish(run)
    finally:
        run.metrics.close()


def fit(run: Run) -> None:
    """The loop: load, forward, loss, backward, step; then, when due, read back, log, evaluate, save."""
    config, state, budget, device = run.config, run.state, run.budget, run.accelerator.device
    clock, watch, copy = Clock(device), WaitWatch(), DeviceCopier(device, run.inputs.policy)
    uncounted_steps = _uncounted_steps(config)
    saved_s = state.training_s
    unread: list[Tensor] = []  # the losses of every step since the last read-back, on the device
    names: list[str] = []  # of the losses
    forecast = Forecast(state.step)
    note = "training"  # replaces the note on what came before these steps; afterwards the last line of metrics stays
    report_progress(run, "waiting for the first batch")
    with closing(open_batches(run)) as batches, _tracer(run) as tracer, on_sigterm() as request:
        while not budget.is_spent(state.step, state.training_s):
            lr = _set_learning_rate(run)
            # Start-up, such as the step that compiles, is not training time: it gets a clock that nobody reads.
            step_clock = clock if uncounted_steps <= 0 else Clock(device)
            try:
                terms = take_step(run, batches, copy, step_clock)
            except KDCacheError:  # the data failed; everything that was learnt before is sound
                if unread and run.accelerator.num_processes == 1:
                    _read_back(run, names, unread, clock, watch, request)
                    unread.clear()
                _save_before_stopping(run, unread)
                raise
            uncounted_steps -= 1
            if tracer is not None:
                tracer.step()
            names = list(terms)
            unread.append(torch.stack([term.detach() for term in terms.values()]))
            state.step += 1
            is_last = budget.is_spent(state.step, state.training_s)
            # Reading back waits for the device. A budget that is still timing its first steps needs it every step.
            if not (_is_read_back(run) or budget.is_timing or is_last):
                continue
            stopping = _read_back(run, names, unread, clock, watch, request)
            unread.clear()
            if line := forecast.observe(state.step, state.training_s, budget.total_steps):
                logger.info(line)
            # Again, because the time that was just read back may end the run.
            is_last = budget.is_spent(state.step, state.training_s)
            if _due(state.step, config.log_every_steps) or is_last:
                _log(run, lr)
            else:
                report_progress(run, note)
            note = ""
            # `finish` evaluates after the last step.
            if _due(state.step, config.eval_every_steps) and not is_last:
                with clock.stopped():
                    evaluate_student(run)
                note = "training"
            if is_last or stopping or _save_is_due(run, saved_s):
                _save(run, clock)
                saved_s = state.training_s
            if stopping and not is_last:
                logger.info(
                    "stopped by SIGTERM: the state of step %d is saved; --resume continues it", state.step
                )
                run.accelerator.wait_for_everyone()  # a launcher kills all processes as soon as one has ended
                raise KeyboardInterrupt


def _save(run: Run, clock: Clock) -> None:
    """A checkpoint, outside of the training time."""
    with clock.stopped():
        began = time.perf_counter()
        save_checkpoint(run)
        run.metrics.write("save", run.state.step, {"seconds": time.perf_counter() - began})


def _save_before_stopping(run: Run, unread: list[Tensor]) -> None:
    """Save the steps since the last checkpoint, if their losses have been read back.

    Of several processes the others may not have failed, and a read-back needs all of them; losses that nobody checked may
    be NaN.
    """
    if not unread and run.state.step:
        save_checkpoint(run)
        logger.info("the state of step %d is saved; --resume continues it", run.state.step)


def take_step(run: Run, batches: Iterator[Batch], copy: DeviceCopier, clock: Clock) -> dict[str, Tensor]:
    """One step: load, forward, loss, backward, update. Marks its parts on the clock; the caller counts the step.

    Returns:
        The losses by name, weighted.

    Raises:
        KDCacheError: the batch could not be read.
    """
    clock.mark(OTHER)
    on_host = next(batches)
    clock.mark(WAIT)
    batch = copy(on_host)
    clock.mark(COPY)
    terms = compute_terms(run, batch)
    clock.mark(FORWARD)
    if _due(run.state.step, run.config.gradnorm_every_steps):
        with clock.stopped():
            run.metrics.write("gradnorm", run.state.step, gradient_norms(run, terms))
    update(run, terms, clock)
    return terms


def compute_terms(run: Run, batch: Batch) -> dict[str, Tensor]:
    """The losses of a batch on the device, by name, weighted."""
    accelerator, seed, step = run.accelerator, run.config.seed, run.state.step
    # Seeded every step, so that dropout does not depend on earlier steps and a checkpoint needs no random state.
    torch.manual_seed(_derive_seed(f"step {seed} {step} {accelerator.process_index}"))
    counts = accelerator.reduce(run.distiller.method.count(batch.label, batch.valid_size), "sum")
    # The seed of the method's random numbers is the same in all processes.
    totals = share_totals(counts, accelerator.num_processes, _derive_seed(f"method {seed} {step}"))
    terms: dict[str, Tensor] = run.model(batch, run.inputs.targets(batch), totals)
    return terms


def update(run: Run, terms: Mapping[str, Tensor], clock: Clock) -> None:
    """Backward pass, then a step of the student's optimiser and of the discriminator's, if the method has one.

    One backward pass serves all: a discriminator's loss has no gradient with respect to the student, nor the student's
    losses with respect to the discriminator.
    """
    adversaries, scaler = run.distiller.method.adversaries, run.accelerator.scaler
    # fp16 scales the sum of all losses, and only the student's optimiser, which Accelerate wrapped, scales gradients
    # back. Discriminators run in float32: divide their losses by the scale in advance. They cannot share the scaler,
    # which adapts its scale at every step of an optimiser.
    losses = [
        scaler.scale(torch.ones_like(term)).reciprocal() * term if scaler and name in adversaries else term
        for name, term in terms.items()
    ]
    run.accelerator.backward(torch.stack(losses).sum())
    clock.mark(BACKWARD)
    for optimiser in (run.optimiser, *run.adversary_optimisers):
        optimiser.step()
        optimiser.zero_grad()
    clock.mark(OPTIMISER)


def gradient_norms(run: Run, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """L2 norm of each loss's gradient with respect to the student's backbone, by name: shows the effect of the weights.

    Costs one backward pass a loss, outside of the training time.
    """
    parameters = list(run.distiller.student.backbone.parameters())
    scaler = run.accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 1.0  # without it, gradients in fp16 underflow to 0
    norms = {}
    for name, term in terms.items():
        if name in run.distiller.method.adversaries:
            continue
        gradients = torch.autograd.grad(term * scale, parameters, retain_graph=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        norms[name] = float(run.accelerator.reduce(flat, "mean").norm()) / scale
    return norms


def _tracer(run: Run) -> AbstractContextManager[Tracer | None]:
    """Records a trace, in the first process of a run with --profile."""
    if run.config.profile and run.accelerator.is_main_process:
        return Tracer(run.folder, run.accelerator.device)
    return nullcontext()


def _uncounted_steps(config: TrainConfig) -> int:
    """The first steps of every start that do not count as training time, see TrainConfig.warm_up."""
    if config.warm_up == "none":
        return WARM_UP_STEPS
    return int(config.compile and config.warm_up == "steps")  # the first step compiles


def _is_read_back(run: Run) -> bool:
    """True after every READ_BACK_STEPS steps, and where logging, evaluating or saving is due. On a CPU reading is free."""
    config, step = run.config, run.state.step
    intervals = (config.log_every_steps, config.eval_every_steps, config.save_every_steps)
    on_cpu = run.accelerator.device.type == "cpu"
    return on_cpu or step % READ_BACK_STEPS == 0 or any(_due(step, interval) for interval in intervals)


def _derive_seed(purpose: str) -> int:
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits, because torch takes signed 64-bit seeds


def _set_learning_rate(run: Run) -> float:
    """Set the learning rate of this step in all optimisers, and return it."""
    config, fraction = run.config, run.budget.fraction(run.state.step)
    lr = learning_rate(config.schedule, fraction, start=config.lr, end=config.min_lr, power=config.power)
    for optimiser in (run.optimiser, *run.adversary_optimisers):
        for group in optimiser.param_groups:
            group["lr"] = lr * group["factor"]
    return lr


def _read_back(
    run: Run, names: list[str], losses: list[Tensor], clock: Clock, watch: WaitWatch, request: StopRequest
) -> bool:
    """Read back the losses since the last read-back, averaged over processes, and book their training time.

    Returns:
        True if the first process was asked to stop.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    state, accelerator = run.state, run.accelerator
    rows = accelerator.reduce(torch.stack(losses), "mean").tolist()  # a NaN in one process becomes NaN in all
    # All processes go by the first one's clock and SIGTERM, so that all make the same decisions.
    lap_s, parts = clock.lap()
    lap = torch.tensor(
        [request.asked, lap_s, *parts.values()], dtype=torch.float64, device=accelerator.device
    )
    stopping, seconds, *by_part = broadcast(lap, from_process=0).tolist()
    for step, row in enumerate(rows, start=state.step - len(rows)):
        for name, value in zip(names, row, strict=True):
            if not math.isfinite(value):
                raise _not_finite(run, step, name, value)
            state.since_log[name] = state.since_log.get(name, 0.0) + value
    times = {"steps": len(rows), "seconds": seconds, **dict(zip(PARTS, by_part, strict=True))}
    for name, value in times.items():
        state.since_log[name] = state.since_log.get(name, 0.0) + value
    state.training_s += seconds
    if share := watch.observe(seconds=seconds, wait_s=times[WAIT], steps=len(rows)):
        logger.warning(
            "the student waited for data in %.0f %% of the time up to step %d; what may help: %s",
            *(100 * share, state.step, _ways_to_faster_data(run)),
        )
    _observe_budget(run)
    return bool(stopping)


def _observe_budget(run: Run) -> None:
    """Pass the training time to the budget, and report the number of steps when it becomes known."""
    budget, state = run.budget, run.state
    before = budget.total_steps
    budget.observe(state.step, state.training_s)
    if budget.total_steps != before:
        run.metrics.write("budget", state.step, {"total_steps": budget.total_steps})
        total = budget.total_steps
        logger.info(
            "the budget is enough for %d steps; to repeat this run exactly, use --steps %d", total, total
        )


def _ways_to_faster_data(run: Run) -> str:
    """What may make batches arrive sooner, the cheapest first."""
    config = run.config
    advice = [f"more --workers (now {run.workers} a process, on {os.cpu_count()} processors)"]
    if config.store and not config.fresh_views:
        if run.inputs.stored_views is not None and run.inputs.stored_views.check_crops == "always":
            advice.append("--check-crops sample")
        advice.append("a store with its crops in it (build --inputs jpeg)")
    return ", ".join([*advice, "a faster disk"])


def _not_finite(run: Run, step: int, term: str, value: float) -> TrainingError:
    config = run.config
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    return TrainingError(
        f"--method {config.method}: the loss term {term!r} is {value} at step {step}; "
        f"entries: {run.inputs.views.describe(positions)}",
        hint=f"lower --lr (now {config.lr})"
        + (", or --mixed-precision bf16" if config.mixed_precision == "fp16" else "")
        + f"; the last checkpoint is kept in {config.out}",
    )


def _log(run: Run, lr: float) -> None:
    """Write a line of metrics: means over the steps since the last line."""
    state = run.state
    sums, state.since_log = state.since_log, {}
    steps, seconds = sums.pop("steps"), sums.pop("seconds")
    parts = {part: sums.pop(part) / steps for part in PARTS}
    terms = {name: total / steps for name, total in sums.items()}
    # A discriminator's loss is logged under its name and is not part of `loss`, which is the student's.
    loss = sum(value for name, value in terms.items() if name not in run.distiller.method.adversaries)
    timing = {"step_s": seconds / steps, "wait_s": parts[WAIT], "training_s": state.training_s}
    run.metrics.write("train", state.step, {"loss": loss, **terms, "lr": lr, **timing})
    run.metrics.write("profile", state.step, {"steps": steps, **parts})
    report_progress(run, f"loss {loss:.4f}, lr {lr:.2g}, {seconds / steps:.2f} s a step")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _save_is_due(run: Run, saved_s: float) -> bool:
    config, state = run.config, run.state
    by_time = config.save_every_s > 0 and state.training_s - saved_s >= config.save_every_s
    return by_time or _due(state.step, config.save_every_steps)
