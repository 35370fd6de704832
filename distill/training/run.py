"""Builds what the loop works with: inputs, student, method, optimisers, and the state of a checkpoint."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
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
from kdcache.distill.losses.processes import of_first_process, process_rank
from kdcache.distill.losses.region import Totals
from kdcache.distill.losses.terms import LossConfig, Method
from kdcache.distill.runfolder import CHECKPOINT, CONFIG, ENVIRONMENT, INPUTS, Metrics
from kdcache.distill.students.start import build_student
from kdcache.distill.training.budget import Budget
from kdcache.distill.training.checkpoint import load_state
from kdcache.distill.training.sync_norm import synchronise_norms
from kdcache.distill.units import duration_text

# Longer than a process may wait for a storage (retries.py), for the others wait in a collective operation meanwhile.
PROCESS_TIMEOUT = timedelta(hours=2)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class State:
    """The numbers that change during a run, besides weights and the optimisers' states."""

    step: int = 0
    """Steps done."""
    training_s: float = 0.0
    """Seconds of training, by the first process's clock."""
    since_log: dict[str, float] = field(default_factory=dict)
    """Sums over the steps since the last line of metrics: losses by name, `steps`, `seconds`, and clock.PARTS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the loop works with. Built by open_run."""

    config: TrainConfig
    folder: Path
    accelerator: Accelerator
    inputs: Inputs
    distiller: "Distiller"
    model: nn.Module  # the distiller as Accelerate wrapped it
    optimiser: torch.optim.Optimizer
    adversary_optimisers: list[torch.optim.Optimizer]  # of networks that train against the student
    budget: Budget
    state: State
    metrics: Metrics
    workers: int  # of this process
    progress: Progress


class Distiller(nn.Module):
    """Student and method as one module, so that DDP also averages the gradients of the method's projectors."""

    def __init__(self, student: SegmentationNetwork, method: Method, normalisation: Normalisation) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self.normalisation = normalisation

    def forward(self, batch: Batch, targets: Mapping[str, Tensor], totals: Totals) -> dict[str, Tensor]:
        """Weighted scalar losses by name, see Method."""
        output = self.student(self.normalisation(batch.image, batch.valid_size))
        terms: dict[str, Tensor] = self.method(output, targets, batch.label, batch.valid_size, totals)
        return terms


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate, on the device that `config` asks for.

    Raises:
        UsageError: the device lacks the precision or a compiler, or the batch is not a multiple of the processes.
    """
    AcceleratorState._reset_state()  # a singleton: it would keep the precision of an earlier run in this process
    unused = config.aux_weight == 0  # the auxiliary head then gets no gradient, and DDP would wait for one
    backend = DynamoBackend.INDUCTOR if config.compile else DynamoBackend.NO
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            cpu=config.device == "cpu",
            dynamo_plugin=TorchDynamoPlugin(backend=backend.value),
            kwargs_handlers=[
                # Every process keeps the same statistics (sync_norm.py), so nobody has to send its buffers around.
                DistributedDataParallelKwargs(
                    find_unused_parameters=unused, broadcast_buffers=False, gradient_as_bucket_view=True
                ),
                InitProcessGroupKwargs(timeout=PROCESS_TIMEOUT),
            ],
        )
    except ValueError as error:
        message = f"--mixed-precision {config.mixed_precision} does not work on this device: {error}"
        raise UsageError(message, hint="--mixed-precision no") from None
    if config.batch_size % accelerator.num_processes:
        raise UsageError(
            f"--batch-size {config.batch_size} is not a multiple of the {accelerator.num_processes} processes",
            hint="--batch-size counts the crops of all processes together: try "
            f"--batch-size {-(-config.batch_size // accelerator.num_processes) * accelerator.num_processes}",
        )
    if config.compile:
        _require_compiler(accelerator.device)
    return accelerator


def _require_compiler(device: torch.device) -> None:
    """Raises UsageError if torch.compile fails here: no compiler for the device, or an unsupported version of Python."""
    # Gradient norms run backward through the compiled graph several times, so it must not give away its buffers.
    torch._functorch.config.donated_buffer = False
    try:
        torch.compile(lambda x: (2 * x).sum())(torch.ones(2, device=device, requires_grad=True)).backward()
    except Exception as error:  # dynamo, inductor and their compilers raise errors of many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"--compile: torch cannot compile here: {reason}"
        raise UsageError(message, hint="leave out --compile") from error


def open_run(config: TrainConfig, accelerator: Accelerator, progress: Progress = silent) -> Run:
    """Open the inputs, build student and method, and load the state of the run's last checkpoint, if there is one.

    Raises:
        UsageError: the batch is too small for a BatchNorm, or student and teacher do not fit.
        StoreMismatchError: see inputs.open_inputs.
        TrainingError: the checkpoint is unreadable.
    """
    folder = Path(config.out)
    progress(0, config.steps or 0, "opening the data")
    pinned = runfolder.read_json(folder / INPUTS) if (folder / INPUTS).exists() else None
    _require_shared(folder, pinned)
    inputs = open_inputs(config, device=accelerator.device, pinned=pinned)
    progress(0, config.steps or 0, f"building {config.student}")
    saved = load_state(folder / CHECKPOINT)
    run = assemble_run(config, accelerator, inputs, saved=saved, progress=progress)
    if accelerator.is_main_process:
        _describe(config, inputs, accelerator, run.distiller)
    size = saved["metrics_bytes"] if saved else 0  # drops lines of steps that are about to run again
    metrics = Metrics(folder, step=run.state.step, size=size, enabled=accelerator.is_main_process)
    return replace(run, metrics=metrics)


def _require_shared(folder: Path, pinned: Mapping[str, Any] | None) -> None:
    """Raises UsageError in a process that finds another run in the folder than the first one: it is on another disk."""
    if of_first_process(pinned) != pinned:
        raise UsageError(
            f"process {process_rank()} does not find the run in {folder} that the first process finds there",
            hint="--out must be a folder that all nodes share",
        )


def assemble_run(
    config: TrainConfig,
    accelerator: Accelerator,
    inputs: Inputs,
    *,
    saved: Mapping[str, Any] | None = None,  # from checkpoint.load_state
    progress: Progress = silent,
) -> Run:
    """Student, method and optimisers for these inputs, in the saved state. Writes no file.

    Raises:
        UsageError: the batch is too small for a BatchNorm, or student and teacher do not fit.
    """
    distiller = _build_distiller(config, inputs, accelerator)
    state, budget = State(), Budget(config, n_images=len(inputs.images))
    if saved is not None:
        distiller.load_state_dict(saved["model"])
        budget.load_state_dict(saved["budget"])
        state = State(**saved["state"])
    adversary_optimisers = _collect_adversary_optimisers(config, distiller)
    optimiser = _make_optimiser(config, distiller, adversary_optimisers)
    _keep_from_broadcast(distiller)
    model, optimiser = accelerator.prepare(distiller, optimiser)
    if saved is not None:
        optimiser.load_state_dict(saved["optimiser"])
        for adversary, its_state in zip(adversary_optimisers, saved["rival_optimisers"], strict=True):
            adversary.load_state_dict(its_state)
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
        adversary_optimisers=adversary_optimisers,
        budget=budget,
        state=state,
        metrics=Metrics(Path(config.out), enabled=False),
        workers=_workers(config, accelerator),
        progress=progress,
    )


def _describe(config: TrainConfig, inputs: Inputs, accelerator: Accelerator, distiller: Distiller) -> None:
    """Write the run's options, inputs and environment into its folder."""
    folder, workers = Path(config.out), _workers(config, accelerator)
    logger.info(_headline(config, accelerator, distiller))
    share = config.batch_size // accelerator.num_processes
    in_flight = InFlight.of(workers=workers, batch_entries=share, entry_bytes=inputs.entry_bytes)
    logger.info(
        "loading data takes up to %.3g MB of memory a process: %d entries of %.3g MB (workers: %d)",
        *(in_flight.bytes / 1e6, in_flight.entries, in_flight.entry_bytes / 1e6, workers),
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
    torch.manual_seed(config.seed)  # heads and projectors start from the same random weights in every process
    processes, classes = accelerator.num_processes, len(inputs.images.classes.names)
    student, normalisation = build_student(
        config.student,
        classes,
        config.backbone_weights,
        preset=config.preset,
        progress=accelerator.is_main_process,
    )
    require_trainable(student.config, config.batch_size)
    if processes > 1:
        synchronise_norms(student)
    method = build_method(config.method, LossConfig.of(config), student.config, inputs.target_channels)
    distiller = Distiller(student, method, normalisation)
    distiller.to(memory_format=torch.channels_last)
    return distiller.to(accelerator.device)


def require_trainable(student: NetworkConfig, batch_size: int, option: str = "--batch-size") -> None:
    """Raises UsageError, naming the option, if the batch of all processes is too small for a BatchNorm."""
    least = student.min_training_batch
    if batch_size < least:
        raise UsageError(
            f"{option} {batch_size} leaves {batch_size} crop to a step: {student.name} pools each crop to one value a "
            f"channel, and BatchNorm needs at least {least} values",
            hint=f"{option} {least} or more",
        )


def _collect_adversary_optimisers(config: TrainConfig, distiller: Distiller) -> list[torch.optim.Optimizer]:
    """The method's own optimisers. Their learning rates follow the student's schedule, as in SKD's and IFVD's code."""
    optimisers: list[torch.optim.Optimizer] = distiller.method.make_adversary_optimisers()
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["factor"] = group["lr"] / config.lr  # the loop sets lr = the student's lr x factor
    return optimisers


def _make_optimiser(
    config: TrainConfig, distiller: Distiller, adversaries: list[torch.optim.Optimizer]
) -> torch.optim.SGD:
    """SGD on all parameters that no adversary's optimiser has."""
    backbone = list(distiller.student.backbone.parameters())
    apart = [p for optimiser in adversaries for group in optimiser.param_groups for p in group["params"]]
    known = {id(parameter) for parameter in [*backbone, *apart]}
    heads = [parameter for parameter in distiller.parameters() if id(parameter) not in known]
    # Weight decay acts on BatchNorms and biases too, as in the reference code bases.
    groups = [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": config.head_lr_factor}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _keep_from_broadcast(distiller: Distiller) -> None:
    """Keep DDP from broadcasting buffers that every process computes equal: CIRKD's queues are a gigabyte, every step."""
    terms = distiller.method.terms.values()
    identical = {id(getattr(term, name)) for term in terms for name in term.identical_buffers}
    names = [name for name, buffer in distiller.named_buffers() if id(buffer) in identical]
    # Private, but torch's only way to do this, unchanged since 2021.
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(distiller, names)  # type: ignore[no-untyped-call]


def _workers(config: TrainConfig, accelerator: Accelerator) -> int:
    """Loader workers of a process: as asked, or its part of this host's cores, one of which is left for training."""
    if config.workers is not None:
        return config.workers
    # Affinity, not the machine's count: a container or a batch job may own a few of its cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or accelerator.num_processes)  # set by `accelerate launch`
    return max(1, cores // here - 1)
