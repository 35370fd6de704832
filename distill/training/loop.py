"""Training: one student, one method, one loop.

    accelerate launch -m kdcache.cli distill --method logit --store URL --steps 1000 --out runs/logit

`fit` is the loop; everything above it opens and builds, everything below it is one step of it or one thing that it
does now and then. Accelerate brings mixed precision, several processes and gradient scaling. It does not touch the
order of the data: a step is an interval of a stream that the seed alone determines, and a process takes its slice.

The device is waited for once in READ_BACK_STEPS steps (on a CPU: every step), when the losses are read back. All
decisions are taken there, from numbers that all processes share, so that all decide alike: stop, log, save, and
whether a loss is finite.

A step seeds torch from (seed, step, process): dropout depends on nothing that came before, and a resumed run needs no
random state. What a method draws comes from (seed, step), in all processes alike.
"""

import hashlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
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
from kdcache.distill.training.outcome import (
    RunResult,
    evaluate_student,
    finish,
    report_progress,
    save_checkpoint,
)
from kdcache.distill.training.profile import Tracer
from kdcache.distill.training.run import Run, make_accelerator, open_run
from kdcache.distill.training.stream import open_batches

READ_BACK_STEPS = 10

logger = logging.getLogger(__name__)


def train(config: TrainConfig, *, resume: bool = False, progress: Progress = silent) -> RunResult:
    """Train a student as `config` says, or go on with the run in its folder; every process calls this alike.

    Raises:
        UsageError: the folder holds a run already, or another one than is resumed; the batch does not fit.
        StoreMismatchError: the store lacks a target, or store and dataset do not belong together.
        TrainingError: a loss is not finite.
        KeyboardInterrupt: also on SIGTERM, with the state of the last step kept.
    """
    accelerator = make_accelerator(config)
    folder = Path(config.out)
    goes_on = runfolder.require_free(folder, config, resume=resume)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have looked at it
    if goes_on and (folder / SCORES).exists():
        return RunResult(out=config.out, was_complete=True, **runfolder.read_json(folder / SCORES))
    run = open_run(config, accelerator, progress)
    try:
        fit(run)
        return finish(run)
    finally:
        run.metrics.close()


def fit(run: Run) -> None:
    """The loop: load, forward, loss, backward, step; then, when due, log, evaluate, save."""
    config, state, budget = run.config, run.state, run.budget
    read_back_steps, saved_s = _read_back_steps(run), state.training_s
    losses: list[Tensor] = []
    uncounted, forecast = _uncounted_steps(config), Forecast(state.step)
    report_progress(run, "waiting for the first batch")
    clock, watch, copy = Clock(run.accelerator.device), WaitWatch(), DeviceCopier(run.accelerator.device)
    with closing(open_batches(run)) as batches, _tracer(run) as tracer, on_sigterm() as request:
        while not budget.is_spent(state.step, state.training_s):
            lr = _set_learning_rate(run)
            try:
                # Nobody looks at the clock of a step that is start-up, such as the one that compiles the student.
                terms = take_step(
                    run, batches, copy, clock if uncounted <= 0 else Clock(run.accelerator.device)
                )
            except KDCacheError:  # of a batch: all that was learnt before is whole
                _save_before_stopping(run, losses)
                raise
            uncounted -= 1
            if tracer is not None:
                tracer.step()
            losses.append(torch.stack([term.detach() for term in terms.values()]))
            state.step += 1
            ended = budget.is_spent(state.step, state.training_s)
            if state.step % read_back_steps and not (budget.is_timing or ended):
                continue
            stopping = _settle(run, list(terms), losses, clock, watch, request)
            losses.clear()
            if line := forecast.observe(state.step, state.training_s, budget.total_steps):
                logger.info(line)
            ended = budget.is_spent(state.step, state.training_s)
            if _due(state.step, config.log_every_steps) or ended:
                _log(run, lr)
            else:
                report_progress(run, "")
            if _due(state.step, config.eval_every_steps) and not ended:
                with clock.stopped():
                    evaluate_student(run)
            if ended or stopping or _save_is_due(run, saved_s):
                with clock.stopped():
                    began = time.perf_counter()
                    save_checkpoint(run)
                    run.metrics.write("save", state.step, {"seconds": time.perf_counter() - began})
                saved_s = state.training_s
            if stopping and not ended:
                logger.info(
                    "asked to end: the state of step %d is kept, --resume goes on from there", state.step
                )
                run.accelerator.wait_for_everyone()  # a launcher kills all when the first one is gone
                raise KeyboardInterrupt


def _save_before_stopping(run: Run, unread: list[Tensor]) -> None:
    """Keep the steps since the last checkpoint, where no loss of theirs waits to be read back, which takes all processes."""
    if not unread and run.state.step:
        save_checkpoint(run)
        logger.info("the state of step %d is kept: --resume goes on from there", run.state.step)


def take_step(run: Run, batches: Iterator[Batch], copy: DeviceCopier, clock: Clock) -> dict[str, Tensor]:
    """One step, its parts marked on the clock; the terms of its loss. The caller counts it."""
    clock.mark(OTHER)
    waited_for = next(batches)
    clock.mark(WAIT)
    batch = copy(waited_for)
    clock.mark(COPY)
    terms = compute_terms(run, batch)
    clock.mark(FORWARD)
    if _due(run.state.step, run.config.gradnorm_every_steps):
        with clock.stopped():
            run.metrics.write("gradnorm", run.state.step, gradient_norms(run, terms))
    update(run, terms, clock)
    return terms


def compute_terms(run: Run, batch: Batch) -> dict[str, Tensor]:
    """The loss of one batch, already on the device, as named and weighted terms."""
    accelerator, seed, step = run.accelerator, run.config.seed, run.state.step
    torch.manual_seed(_draw_seed(f"step {seed} {step} {accelerator.process_index}"))
    counts = accelerator.reduce(run.distiller.method.count(batch.label, batch.valid_size), "sum")
    totals = share_totals(counts, accelerator.num_processes, _draw_seed(f"method {seed} {step}"))
    terms: dict[str, Tensor] = run.model(batch, run.inputs.targets(batch), totals)
    return terms


def update(run: Run, terms: Mapping[str, Tensor], clock: Clock) -> None:
    """Backward and one step of the student's optimiser, and of its rivals', where the method has a discriminator.

    One backward pass does for all: what a rival learns from has no gradient by the student, nor the other way round.
    A rival, in float32 always, is kept out of the scaling of half precision: Accelerate's scaler moves on at every step
    of an optimiser, so two cannot share it.
    """
    adversaries, scaler = run.distiller.method.adversaries, run.accelerator.scaler
    losses = [
        scaler.scale(torch.ones_like(term)).reciprocal() * term if scaler and name in adversaries else term
        for name, term in terms.items()
    ]
    run.accelerator.backward(torch.stack(losses).sum())
    clock.mark(BACKWARD)
    for optimiser in (run.optimiser, *run.rival_optimisers):
        optimiser.step()
        optimiser.zero_grad()
    clock.mark(OPTIMISER)


def gradient_norms(run: Run, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """L2 norm of each term's gradient by the student's backbone, which all terms share: what their weights do.

    Costs one backward pass a term, outside of the account.
    """
    parameters = list(run.distiller.student.backbone.parameters())
    scaler = run.accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 1.0  # half-precision gradients vanish without it
    norms = {}
    for name, term in terms.items():
        if name in run.distiller.method.adversaries:
            continue
        gradients = torch.autograd.grad(term * scale, parameters, retain_graph=True, materialize_grads=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        norms[name] = float(run.accelerator.reduce(flat, "mean").norm()) / scale
    return norms


def _tracer(run: Run) -> AbstractContextManager[Tracer | None]:
    """What records a trace, in the first process of a run with --profile."""
    if run.config.profile and run.accelerator.is_main_process:
        return Tracer(run.folder, run.accelerator.device)
    return nullcontext()


def _uncounted_steps(config: TrainConfig) -> int:
    """Steps of every start that are outside of the account, see TrainConfig.warm_up."""
    if config.warm_up == "none":
        return WARM_UP_STEPS
    return int(config.compile and config.warm_up == "steps")


def _read_back_steps(run: Run) -> int:
    """Steps between read-backs: every step on a CPU, where they cost nothing, else what all intervals divide by."""
    config = run.config
    if run.accelerator.device.type == "cpu":
        return 1
    return math.gcd(READ_BACK_STEPS, config.log_every_steps, config.eval_every_steps, config.save_every_steps)


def _draw_seed(purpose: str) -> int:
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _set_learning_rate(run: Run) -> float:
    """The learning rate of this step, now in the optimisers."""
    config, fraction = run.config, run.budget.fraction(run.state.step)
    lr = learning_rate(config.schedule, fraction, start=config.lr, end=config.min_lr, power=config.power)
    for optimiser in (run.optimiser, *run.rival_optimisers):
        for group in optimiser.param_groups:
            group["lr"] = lr * group["factor"]
    return lr


def _settle(
    run: Run, names: list[str], losses: list[Tensor], clock: Clock, watch: WaitWatch, request: "StopRequest"
) -> bool:
    """Read the losses of the steps since the last time back, over all processes, and put their time to the account.

    Returns:
        Whether the first process was asked to stop.

    Raises:
        TrainingError: a term is not finite.
    """
    state, accelerator = run.state, run.accelerator
    rows = accelerator.reduce(torch.stack(losses), "mean").tolist()  # a NaN of one process is one of all
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
    account = {"steps": len(rows), "seconds": seconds, **dict(zip(PARTS, by_part, strict=True))}
    for name, value in account.items():
        state.since_log[name] = state.since_log.get(name, 0.0) + value
    state.training_s += seconds
    if share := watch.observe(seconds=seconds, wait_s=account[WAIT], steps=len(rows)):
        logger.warning(
            "the student waited for data in %.0f %% of the time up to step %d: %s",
            *(100 * share, state.step, _quicker_data(run)),
        )
    before = run.budget.total_steps
    run.budget.observe(state.step, state.training_s)
    if run.budget.total_steps != before:
        run.metrics.write("budget", state.step, {"total_steps": run.budget.total_steps})
        logger.info(
            "the budget holds %d steps; --steps in place of --budget repeats them", run.budget.total_steps
        )
    return bool(stopping)


def _quicker_data(run: Run) -> str:
    """What may bring batches sooner, the cheapest first."""
    config = run.config
    advice = [f"more --workers (now {run.workers} a process, {os.cpu_count()} processors)"]
    if config.store and not config.fresh_views:
        if config.check_crops == "always":
            advice.append("--check-crops sample")
        advice.append("a store with its crops in it (build --inputs stored)")
    return ", ".join([*advice, "a faster disk"])


def _not_finite(run: Run, step: int, term: str, value: float) -> TrainingError:
    config = run.config
    positions = range(step * config.batch_size, (step + 1) * config.batch_size)
    return TrainingError(
        f"--method {config.method}: the loss term {term!r} is {value} at step {step}; "
        f"entries: {run.inputs.views.describe(positions)}",
        hint=f"lower --lr (now {config.lr})"
        + (", or --mixed-precision bf16" if config.mixed_precision == "fp16" else "")
        + f"; the checkpoint before stands in {config.out}",
    )


def _log(run: Run, lr: float) -> None:
    """A line of metrics: means over the steps since the one before."""
    state = run.state
    sums, state.since_log = state.since_log, {}
    steps, seconds = sums.pop("steps"), sums.pop("seconds")
    parts = {part: sums.pop(part) / steps for part in PARTS}
    terms = {name: total / steps for name, total in sums.items()}
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


@dataclass(slots=True)
class StopRequest:
    asked: bool = False


@contextmanager
def on_sigterm() -> Iterator[StopRequest]:
    """A request that SIGTERM makes. Outside of the main thread, where Python lets nobody listen, nobody makes it."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(*_: object) -> None:
        request.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, before)
