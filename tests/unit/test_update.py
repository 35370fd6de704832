"""One step of all optimisers: half precision of the student does not affect the discriminator's gradients."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdcache.distill.clock import Clock
from kdcache.distill.training.loop import _is_read_back, update


class ScaledOptimiser:
    """Like an optimiser that Accelerate wrapped: each step updates the scaler."""

    def __init__(self, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self.optimiser, self.scaler = optimiser, scaler

    def step(self) -> None:
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def zero_grad(self) -> None:
        self.optimiser.zero_grad()


def learn(scaler: torch.amp.GradScaler | None, *, overflow: bool = False) -> tuple[Tensor, Tensor]:
    """A parameter of a student and one of its adversary after three steps."""
    student, adversary = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    optimiser: Any = torch.optim.SGD([student], lr=0.1)
    if scaler is not None:
        optimiser = ScaledOptimiser(optimiser, scaler)
    run: Any = SimpleNamespace(
        distiller=SimpleNamespace(method=SimpleNamespace(adversaries={"discriminator"})),
        accelerator=SimpleNamespace(
            scaler=scaler, backward=lambda loss: (scaler.scale(loss) if scaler else loss).backward()
        ),
        optimiser=optimiser,
        adversary_optimisers=[torch.optim.SGD([adversary], lr=0.1)],
    )
    for step in range(3):
        factor = 1e38 if overflow and step == 1 else 1.0
        losses = {"ce": factor * student.square().sum(), "discriminator": adversary.square().sum()}
        update(run, losses, Clock(torch.device("cpu")))
        assert student.grad is None and adversary.grad is None
    return student.detach(), adversary.detach()


@pytest.mark.parametrize("growth_interval", [1, 1000])
def test_scaling_changes_neither(growth_interval: int) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=growth_interval)
    for plain, scaled in zip(learn(None), learn(scaler), strict=True):
        assert torch.equal(plain, scaled)


def test_an_overflow_of_the_students_gradients_leaves_the_adversary_alone() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (student, adversary), (skipped, same) = learn(None), learn(scaler, overflow=True)
    assert torch.equal(adversary, same)
    assert float(skipped) == pytest.approx(float(student) / 0.8)  # one of three steps was skipped


def test_the_device_is_waited_for_only_where_something_is_due() -> None:
    """An interval that shares no divisor with the read-back must not make every step wait."""
    run: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cuda")),
        config=SimpleNamespace(log_every_steps=10, eval_every_steps=2001, save_every_steps=0),
        state=SimpleNamespace(step=0),
    )
    waited = []
    for run.state.step in range(1, 2011):
        if _is_read_back(run):
            waited.append(run.state.step)
    assert waited == [*range(10, 2001, 10), 2001, 2010]
    run.accelerator.device = torch.device("cpu")
    run.state.step = 7
    assert _is_read_back(run)
