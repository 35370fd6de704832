"""DistillationLoss: a method's loss as a module, for a training loop of your own.

The loop of `kdcache distill` shares its counts of pixels over processes itself. This module does that too, so that a
loop calls one thing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from kdcache.cache.errors import UsageError
from kdcache.cache.networks.network import NetworkOutput
from kdcache.cache.shuffle import random_words
from kdcache.cache.views.view import TARGETS
from kdcache.distill.losses.methods import build_method, method_needs
from kdcache.distill.losses.processes import count_processes, sum_over_processes
from kdcache.distill.losses.region import share_totals
from kdcache.distill.losses.terms import LABELS, LossConfig


class LossBatch(Protocol):
    """What the loss reads of a batch; a TeacherBatch has it."""

    @property
    def label(self) -> Tensor:
        """(N, H, W) uint8 or int64 train ids, 255 for none."""

    @property
    def valid_size(self) -> Tensor:
        """(N, 2) integer, height and width of the part of a crop that is not padding."""

    @property
    def targets(self) -> Mapping[str, Tensor]:
        """By target, (N, C, h, w) float32."""

    @property
    def step(self) -> int:
        """The number of the step, from which random draws of a method follow."""


@dataclass(frozen=True, slots=True)
class _Maps:
    channels: Mapping[str, int]
    align_corners: bool


class DistillationLoss(nn.Module):
    """Cross-entropy, and what a method's teacher adds to it.

    Its parameters (projectors) must be trained with the student's: give both to the optimiser.

    Args:
        method: a name of METHODS.
        student_channels: channels of the student's maps by target, "logits" at least: {"logits": 19, "features": 512}.
        teacher_channels: channels of the teacher's, TeacherDataset.channels.
        config: what changes in the method's weights, temperature and masks.
        align_corners: how the student's maps are resampled to the teacher's size, and its logits to the crop's.
        seed: of the draws of methods that mask or sample.

    Raises:
        UsageError: an unknown method, a map that it needs and student or teacher lacks, numbers of classes that
            differ, or a method that trains a discriminator, which needs an optimiser of its own.
    """

    def __init__(
        self,
        method: str,
        student_channels: Mapping[str, int],
        teacher_channels: Mapping[str, int],
        *,
        config: LossConfig | None = None,
        align_corners: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = config or LossConfig()
        needs = ("logits", *method_needs(method, config))
        if missing := [need for need in needs if need not in (*student_channels, LABELS)]:
            raise UsageError(
                f"method {method} needs the student's {missing[0]}; student_channels names only "
                f"{', '.join(student_channels) or 'nothing'}"
            )
        self.student_channels = dict(student_channels)
        self.seed = seed
        self.method = build_method(method, config, _Maps(student_channels, align_corners), teacher_channels)
        if self.method.adversaries:
            names = ", ".join(sorted(self.method.adversaries))
            raise UsageError(
                f"method {method} trains a discriminator ({names}), which only `kdcache distill` does",
                hint='config=LossConfig(kd_terms="holistic=0") leaves it out',
            )

    def forward(
        self, output: NetworkOutput | Mapping[str, Tensor] | Tensor, batch: LossBatch
    ) -> dict[str, Tensor]:
        """The loss as named, weighted scalar terms; their sum is what to minimise.

        Args:
            output: the student's maps before upsampling, (N, C, h, w) each: a NetworkOutput, a mapping by target, or
                the logits alone.

        Raises:
            UsageError: a map that `student_channels` names is not in the output.
        """
        student = self._network_output(output)
        counts = self.method.count(batch.label, batch.valid_size)
        draws_seed = int(random_words(f"{self.seed} loss {batch.step}", 1)[0]) >> 1
        totals = share_totals(sum_over_processes(counts), count_processes(), draws_seed)
        terms: dict[str, Tensor] = self.method(student, batch.targets, batch.label, batch.valid_size, totals)
        return terms

    def _network_output(self, output: NetworkOutput | Mapping[str, Tensor] | Tensor) -> NetworkOutput:
        if isinstance(output, NetworkOutput):
            return output
        maps = {"logits": output} if isinstance(output, Tensor) else dict(output)
        if missing := [name for name in self.student_channels if name not in maps]:
            raise UsageError(f"the student's output has no {missing[0]!r}, which student_channels names")
        # Terms read only maps that student_channels names, so None for the others is never looked at.
        return NetworkOutput(**{name: maps.get(name) for name in TARGETS})  # type: ignore[arg-type]
