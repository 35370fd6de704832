"""Terms against numbers that the methods' published code computed, in float64 on whole maps without padding.

A fixture under tests/fixtures/losses names the code and lists its losses and gradients: norms and some of the numbers.
Inputs and parameters are not stored: they are a function of name and shape (namedvalues.uniform), and the original code
got the same ones. Where our terms average and the original sums, the fixture has the factor as `scale`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from namedvalues import uniform
from torch import Tensor, nn

from kdcache.cache.images.classes import IGNORE
from kdcache.cache.networks.network import NetworkOutput
from kdcache.distill.losses.adversarial import Holistic
from kdcache.distill.losses.attention import AttentionTransfer, CategorySimilarity, PixelSimilarity
from kdcache.distill.losses.generative import MaskedGeneration, OmniContrast
from kdcache.distill.losses.logits import ChannelKL, Correlation, DecoupledKL, FeatureChannelKL
from kdcache.distill.losses.memory import CrossImageMemory, PublishedCrossImageMemory
from kdcache.distill.losses.region import Region
from kdcache.distill.losses.relations import CrossImage, IntraClassVariation, PairSimilarity
from kdcache.distill.losses.terms import FeatureMSE, LossConfig, Pairs, PixelKL, Term

FIXTURES = Path(__file__).parents[1] / "fixtures" / "losses"
TOLERANCE = 1e-9  # of a gradient's norm; float64 leaves some 1e-13
ZERO = 1e-12  # times the largest gradient: smaller ones are rounding errors, such as that of the bias of attention's keys


class SmallMemory(CrossImageMemory):
    """Queues that are full after some images, and that are compared as a whole."""

    pixel_slots = pixel_contrast = 40
    region_slots = region_contrast = 5


class SmallPublishedMemory(PublishedCrossImageMemory):
    pixel_slots = pixel_contrast = 40
    region_slots = region_contrast = 5


TERMS: dict[str, type[Term]] = {
    "logit": PixelKL,
    "logit_ifvd": PixelKL,
    "logit_skd": PixelKL,
    "feature": FeatureMSE,
    "attention": AttentionTransfer,
    "pair": PairSimilarity,
    "variation": IntraClassVariation,
    "cwd": ChannelKL,
    "cwd_feature": FeatureChannelKL,
    "minibatch": CrossImage,
    "memory": SmallMemory,
    "memory_published": SmallPublishedMemory,
    "dist": Correlation,
    "generated": MaskedGeneration,
    "contrast": OmniContrast,
    "contrast_camvid": OmniContrast,
    "dkd": DecoupledKL,
    "psd": PixelSimilarity,
    "csd": CategorySimilarity,
    "holistic": Holistic,
}
STEPS = {"memory": 3, "memory_published": 3}
DRAW = 7  # the seed of the random numbers of both codes


def map_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """A map by the name of its target, as "student.logits": logits are of ordinary size, features mostly positive."""
    values = uniform(name, shape).double()
    return 3 * values if "logits" in name or "aux" in name else values + 0.4


def labels_of(name: str, shape: tuple[int, ...], classes: int) -> Tensor:
    """Every class and some void, in blocks of 8x8 pixels."""
    n, height, width = shape
    cells = ((uniform(name, (n, height // 8, width // 8)) + 1) / 2 * (classes + 1)).long()
    cells[cells == classes] = IGNORE
    return cells.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def parameter_of(name: str, shape: tuple[int, ...]) -> Tensor:
    values = uniform(name, shape).double()
    if len(shape) == 4:
        return values * (6 / (shape[1] * shape[2] * shape[3])) ** 0.5
    if name.endswith("queue"):
        return values / torch.linalg.vector_norm(values, dim=2, keepdim=True)
    if name.endswith(".u"):
        return values / torch.linalg.vector_norm(values)
    return 1 + values / 2 if name.endswith("norm.weight") else values / 2


def fill(module: nn.Module) -> None:
    """Give every parameter and every buffer of numbers its value."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.is_floating_point():
            value.data.copy_(parameter_of(name, tuple(value.shape)))


class GoldenInputs:
    """The maps of a fixture at one of its steps."""

    def __init__(self, shapes: dict[str, list[int]], step: int = 0) -> None:
        maps = {name: map_of(f"{name}.{step}", tuple(shape)) for name, shape in shapes.items()}
        self.student = {
            name.removeprefix("student."): m.requires_grad_()
            for name, m in maps.items()
            if name.startswith("student.")
        }
        self.teacher = {
            name.removeprefix("teacher."): m for name, m in maps.items() if name.startswith("teacher.")
        }
        n, _, height, width = next(iter(maps.values())).shape
        classes = self.teacher["logits"].shape[1] if "logits" in self.teacher else 5
        self.labels = labels_of(f"labels.{step}", (n, 8 * height, 8 * width), classes)

    @property
    def pairs(self) -> Pairs:
        student: dict[str, Any] = dict.fromkeys(NetworkOutput._fields) | self.student
        return Pairs(NetworkOutput(**student), self.teacher)

    @property
    def region(self) -> Region:
        n, height, width = self.labels.shape
        valid_size = torch.tensor([[height, width]] * n)
        total_px = torch.tensor(float(self.labels.numel()), dtype=torch.float64)
        draws = torch.Generator().manual_seed(DRAW)
        return Region(self.labels, valid_size, total_px, LossConfig().kd_ignore, draws)


def make_term(name: str, shapes: dict[str, list[int]]) -> Term:
    widths = {key: shape[1] for key, shape in shapes.items()}
    student, teacher = (
        {key.partition(".")[2]: width for key, width in widths.items() if key.startswith(side)}
        for side in ("student", "teacher")
    )
    term = TERMS[name]({"logits": 5, **student}, {"logits": 5, **teacher}).double()
    fill(term)
    return term


def compute(name: str, shapes: dict[str, list[int]]) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Losses of the last step, and the gradient of their sum by the student's maps and the term's parameters."""
    term = make_term(name, shapes)
    for step in range(STEPS.get(name, 1)):
        inputs = GoldenInputs(shapes, step)
        found = term(inputs.pairs, inputs.region)
    losses = {name: found} if isinstance(found, Tensor) else found
    wanted = {f"student.{key}": value for key, value in inputs.student.items()}
    wanted |= dict(term.named_parameters())
    gradients = torch.autograd.grad(
        torch.stack(list(losses.values())).sum(), list(wanted.values()), materialize_grads=True
    )
    return {key: float(loss.detach()) for key, loss in losses.items()}, dict(
        zip(wanted, gradients, strict=True)
    )


def samples(gradient: Tensor) -> Tensor:
    """Some numbers of a tensor, spread over it."""
    flat = gradient.flatten()
    return flat[torch.linspace(0, len(flat) - 1, min(8, len(flat))).long()]


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues get the first cells of a class, because two codes do not draw random numbers in the same order."""
    falling = lambda region, shape: torch.linspace(1, 0, shape[0]).expand(len(region.labels), -1)
    monkeypatch.setattr(Region, "uniform", falling)


@pytest.mark.parametrize("name", TERMS)
def test_losses_and_gradients_are_the_original_codes(name: str, request: pytest.FixtureRequest) -> None:
    if name in STEPS:
        request.getfixturevalue("in_order")
    golden = json.loads((FIXTURES / f"{name}.json").read_text())
    losses, gradients = compute(name, golden["inputs"])
    scale = golden["scale"]
    for key, value in golden["losses"].items():
        assert losses[key] == pytest.approx(scale * value + constant(name, golden), rel=TOLERANCE)
    assert set(gradients) == set(golden["gradients"])
    largest = max(expected["norm"] for expected in golden["gradients"].values())
    for key, expected in golden["gradients"].items():
        assert gradients[key].shape == tuple(expected["shape"])
        norm, floor = scale * expected["norm"], scale * largest * ZERO
        assert float(gradients[key].norm()) == pytest.approx(norm, rel=TOLERANCE, abs=floor)
        values = scale * torch.tensor(expected["values"], dtype=torch.float64)
        torch.testing.assert_close(samples(gradients[key]), values, rtol=0, atol=TOLERANCE * norm + floor)


def constant(name: str, golden: dict[str, Any]) -> float:
    """A difference of losses without a gradient: SKD's cross-entropy is the KL divergence plus the teacher's entropy."""
    if name != "logit_skd":
        return 0.0
    logits = GoldenInputs(golden["inputs"]).teacher["logits"]
    return float((logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean())


def test_every_fixture_says_where_it_is_from() -> None:
    for path in FIXTURES.iterdir():
        source = json.loads(path.read_text())["source"]
        assert path.stem in TERMS
        assert set(source) == {"repository", "commit", "file", "class"} and len(source["commit"]) == 40
