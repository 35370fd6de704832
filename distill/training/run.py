"""A run, opened: inputs, student, method, optimiser and the state that it goes on from. The loop is in loop.py."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import Tensor, nn

from kdcache.cache.errors import UsageError
from kdcache.cache.networks.network import NetworkConfig, SegmentationNetwork
from kdcache.cache.networks.normalisation import Normalisation
from kdcache.cache.progress import Progress, silent
from kdcache.distill import runfolder
from kdcache.distill.config import TrainConfig
from kdcache.distill.data.inputs import Inputs, open_inputs
from kdcache.distill.data.loader import InFlight
from kdcache.distill.data.targets import Batch
from kdcache.distill.losses.methods import build_method
from kdcache.distill.losses.region import Totals
from kdcache.distill.losses.terms import LossConfig, Method
from kdcache.distill.runfolder import CHECKPOINT, CONFIG, ENVIRONMENT, INPUTS, Metrics
from kdcache.distill.students.start import build_student
from kdcache.distill.training.budget import Budget
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.units import duration_text

MAX_WORKERS = 8

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """All that changes while a run goes on, but for weights and the optimiser's own."""

    step: int = 0
    """Steps done."""
    training_s: float = 0.0
    """The account, by the first process's clock."""
    since_log: dict[str, float] = field(default_factory=dict)
    """Sums over the steps since the last line of metrics: losses by term, `steps`, `seconds`, and clock.PARTS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything that the loop works with."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    inputs: Inputs
    distiller: "Distiller"
    model: nn.Module  # the distiller as Accelerate wrapped it
    optimiser: torch.optim.Optimizer
    rival_optimisers: list[torch.optim.Optimizer]  # of what the method trains apart from the student
    budget: Budget
    state: State
    metrics: Metrics
    workers: int  # of this process
    progress: Progress


class Distiller(nn.Module):
    """Student and method as one module, so that DDP averages all gradients at once, a projector's too."""

    def __init__(self, student: SegmentationNetwork, method: Method, normalisation: Normalisation) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.normalisation = normalisation

    def forward(self, batch: Batch, targets: Mapping[str, Tensor], totals: Totals) -> dict[str, Tensor]:
        """Named, weighted scalar terms, see Method."""
        output = self.student(self.normalisation(batch.image, batch.valid_size))
        terms: dict[str, Tensor] = self.method(output, targets, batch.label, batch.valid_size, totals)
        return terms


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate, on the device that `config` asks for. Raises UsageError for what it cannot do there."""
    AcceleratorState._reset_state()  # it would keep the precision of an earlier run in this process
    unused = config.aux_weight == 0  # then nothing reaches the auxiliary head
    backend = DynamoBackend.INDUCTOR if config.compile else DynamoBackend.NO
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=config.device == "cpu",
            dynamo_plugin=TorchDynamoPlugin(backend=backend.value),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
        )
    except ValueError as error:
        raise UsageError(f"--mixed-precision {config.mixed_precision}: {error}") from None
    if config.batch_size % accelerator.num_processes:
        raise UsageError(
            f"--batch-size {config.batch_size} cannot be shared by {accelerator.num_processes} processes",
            hint="it counts the crops of all processes together",
        )
    if config.compile:
        _require_compiler(accelerator.device)
    return accelerator


def _require_compiler(device: torch.device) -> None:
    """Raises UsageError where torch.compile cannot work: no compiler for the device, or a Python that it does not know."""
    # Gradient norms go backward through the compiled graph several times, which must keep its buffers for that.
    torch._functorch.config.donated_buffer = False
    try:
        torch.compile(lambda x: (2 * x).sum())(torch.ones(2, device=device, requires_grad=True)).backward()
    except Exception as error:  # dynamo, inductor and the compilers beneath have errors of their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"--compile: torch cannot compile here: {reason}"
        raise UsageError(message, hint="leave --compile out") from error


def open_run(config: TrainConfig, accelerator: Accelerator, progress: Progress = silent) -> Run:
    """Open the inputs, build student and method, and take up the state where the run's folder has one.

    Raises:
        UsageError: the batch is too small for a BatchNorm, or student and teacher do not fit.
        StoreMismatchError: see inputs.open_inputs.
    """
    folder = Path(config.out)
    progress(0, config.steps or 0, "opening the data")
    pinned = runfolder.read_json(folder / INPUTS) if (folder / INPUTS).exists() else None
    inputs = open_inputs(config, device=accelerator.device, pinned=pinned)
    progress(0, config.steps or 0, f"building {config.student}")
    saved = load_state(folder / CHECKPOINT)
    run = assemble_run(config, accelerator, inputs, saved=saved, progress=progress)
    if accelerator.is_main_process:
        _describe(config, inputs, accelerator, run.distiller)
    size = saved["metrics_bytes"] if saved else 0
    metrics = Metrics(folder, step=run.state.step, size=size, enabled=accelerator.is_main_process)
    return replace(run, metrics=metrics)


def assemble_run(
    config: TrainConfig,
    accelerator: Accelerator,
    inputs: Inputs,
    *,
    saved: Mapping[str, Any] | None = None,  # of checkpoint.load_state
    progress: Progress = silent,
) -> Run:
    """Student, method and optimiser for these inputs, at the state that was saved; no file is written.

    Raises:
        UsageError: the batch is too small for a BatchNorm, or student and teacher do not fit.
    """
    distiller = _build_distiller(config, inputs, accelerator)
    state, budget = State(), Budget(config, n_images=len(inputs.images))
    if saved is not None:
        distiller.load_state_dict(saved["model"])
        budget.load_state_dict(saved["budget"])
        state = State(**saved["state"])
    rival_optimisers = _make_rival_optimisers(config, distiller)
    optimiser = _make_optimiser(config, distiller, rival_optimisers)
    _keep_from_broadcast(distiller)
    model, optimiser = accelerator.prepare(distiller, optimiser)
    if saved is not None:
        optimiser.load_state_dict(saved["optimiser"])
        for rival, of_rival in zip(rival_optimisers, saved["rival_optimisers"], strict=True):
            rival.load_state_dict(of_rival)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(saved["scaler"])
    return Run(
        config=config,
        folder=Path(config.out),
        accelerator=accelerator,
        inputs=inputs,
        distiller=distiller,
        model=model,
        optimiser=optimiser,
        rival_optimisers=rival_optimisers,
        budget=budget,
        state=state,
        metrics=Metrics(Path(config.out), enabled=False),
        workers=_workers(config, accelerator),
        progress=progress,
    )


def _describe(config: TrainConfig, inputs: Inputs, accelerator: Accelerator, distiller: Distiller) -> None:
    """Write what was asked, what it is pinned to and where it runs into the run's folder."""
    folder, workers = Path(config.out), _workers(config, accelerator)
    logger.info(_headline(config, accelerator, distiller))
    share = config.batch_size // accelerator.num_processes
    in_flight = InFlight.of(workers=workers, batch_entries=share, entry_bytes=inputs.entry_bytes)
    logger.info(
        "data in flight: at most %d entries of %.3g MB, %.3g MB a process (workers: %d)",
        *(in_flight.entries, in_flight.entry_bytes / 1e6, in_flight.bytes / 1e6, workers),
    )
    place = runfolder.environment(
        accelerator.device,
        processes=accelerator.num_processes,
        workers=workers,
        in_flight=asdict(in_flight),
    )
    runfolder.write_json(folder / CONFIG, config.to_dict())
    runfolder.write_json(folder / INPUTS, inputs.identity)
    runfolder.write_json(folder / ENVIRONMENT, {**place, "term_weights": distiller.method.weights})


def _headline(config: TrainConfig, accelerator: Accelerator, distiller: Distiller) -> str:
    """What trains, where and how long, in one line."""
    millions = sum(parameter.numel() for parameter in distiller.student.parameters()) / 1e6
    processes = accelerator.num_processes
    device = f"{processes} processes, {accelerator.device.type}" if processes > 1 else accelerator.device.type
    length = (
        f"{config.steps} steps"
        if config.steps is not None
        else f"{config.epochs} epochs"
        if config.epochs is not None
        else f"{duration_text(config.budget_seconds or 0.0)} of training"
    )
    return (
        f"student {config.student} ({millions:.1f} million parameters), method {config.method}, on {device}: "
        f"{length}, {config.batch_size} crops a step, in the folder {config.out}"
    )


def _build_distiller(config: TrainConfig, inputs: Inputs, accelerator: Accelerator) -> Distiller:
    torch.manual_seed(config.seed)
    processes, classes = accelerator.num_processes, len(inputs.images.classes.names)
    student, normalisation = build_student(
        config.student,
        classes,
        config.backbone_weights,
        preset=config.preset,
        progress=accelerator.is_main_process,
    )
    synchronises = processes > 1 and accelerator.device.type == "cuda"  # torch has SyncBN for GPUs only
    if not synchronises:
        require_trainable(student.config, config.batch_size, processes)
    method = build_method(config.method, LossConfig.of(config), student.config, inputs.target_channels)
    if synchronises:
        student = nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
    distiller = Distiller(student, method, normalisation)
    distiller.to(memory_format=torch.channels_last)
    return distiller.to(accelerator.device)


def require_trainable(
    student: NetworkConfig, batch_size: int, processes: int = 1, option: str = "--batch-size"
) -> None:
    """Raises UsageError, naming the option, for a batch whose share is too small for a BatchNorm."""
    share, least = batch_size // processes, student.min_training_batch
    if share < least:
        raise UsageError(
            f"{option} {batch_size} leaves {share} crop to a process: {student.name} pools a crop to one "
            "value a channel, and BatchNorm cannot train on one",
            hint=f"{option} {least * processes} or more",
        )


def _make_rival_optimisers(config: TrainConfig, distiller: Distiller) -> list[torch.optim.Optimizer]:
    """Those of the method; their learning rates follow the student's schedule, as in the reference code bases."""
    optimisers: list[torch.optim.Optimizer] = distiller.method.own_optimisers()
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["factor"] = group["lr"] / config.lr
    return optimisers


def _make_optimiser(
    config: TrainConfig, distiller: Distiller, adversaries: list[torch.optim.Optimizer]
) -> torch.optim.SGD:
    """SGD of all that no rival optimiser has; weight decay on everything, as the reference code bases have it."""
    backbone = list(distiller.student.backbone.parameters())
    apart = [p for optimiser in adversaries for group in optimiser.param_groups for p in group["params"]]
    known = {id(parameter) for parameter in [*backbone, *apart]}
    heads = [parameter for parameter in distiller.parameters() if id(parameter) not in known]
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": config.head_lr_factor}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _keep_from_broadcast(distiller: Distiller) -> None:
    """Have DDP leave buffers alone that every process computes alike: a memory of a gigabyte, at every step."""
    alike = {id(getattr(term, name)) for term in distiller.method.terms.values() for name in term.alike}
    names = [name for name, buffer in distiller.named_buffers() if id(buffer) in alike]
    # torch's own way, which it has not made public since 2021.
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(distiller, names)  # type: ignore[no-untyped-call]


def _workers(config: TrainConfig, accelerator: Accelerator) -> int:
    """Workers of a process: as asked, or a core each while the training process keeps one, at most MAX_WORKERS."""
    if config.workers is not None:
        return config.workers
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, cores // int(accelerator.num_processes) - 1))
