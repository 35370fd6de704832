"""The cosine between a student's gradients: 1 for equal targets, less for others; and the student is not changed."""

import pytest
import torch
from torch import nn

from kdcache.cache.networks.network import NetworkConfig, NetworkOutput
from kdcache.cache.networks.normalisation import RGB_IMAGENET
from kdcache.distill.study.gradients import TargetPair, gradient_cosines


class SmallStudent(nn.Module):
    """A few convolutions with the interface of a student, and the layers that keep a state or draw numbers."""

    config = NetworkConfig(
        architecture="fcn",
        backbone="resnet18",
        classes=4,
        branch_channels=0,
        head_channels=12,
        aux_channels=0,
    )

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(12, 4, 1))

    def forward(self, images):
        backbone = self.body(images)
        features = self.head(backbone)
        return NetworkOutput(self.classifier(features), features, None, backbone)


@pytest.fixture
def student():
    torch.manual_seed(0)
    return SmallStudent()


def make_pair(noise: float, seed: int = 0) -> TargetPair:
    generator = torch.Generator().manual_seed(seed)
    exact = {
        "logits": torch.randn(2, 4, 4, 4, generator=generator) * 3,
        "features": torch.rand(2, 6, 4, 4, generator=generator),
    }
    return TargetPair(
        image=torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=generator),
        label=torch.randint(0, 4, (2, 32, 32), dtype=torch.uint8, generator=generator),
        valid_size=torch.tensor([[32, 32], [24, 32]]),
        exact=exact,
        stored={
            name: target + noise * torch.randn(target.shape, generator=generator)
            for name, target in exact.items()
        },
    )


def logits_of(pair: TargetPair) -> TargetPair:
    parts = {name: {"logits": getattr(pair, name)["logits"]} for name in ("exact", "stored")}
    return TargetPair(image=pair.image, label=pair.label, valid_size=pair.valid_size, **parts)


def test_the_more_targets_differ_the_less_gradients_agree(student):
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = [gradient_cosines(student, RGB_IMAGENET, [make_pair(noise)]) for noise in (0.0, 0.1, 1.0)]
    assert set(found[0]) >= {"logit", "feature", "logit+feature"}
    for method in found[0]:
        exact, near, far = (cosines[method] for cosines in found)
        assert exact == pytest.approx(1, abs=1e-6)
        assert exact > near > far
    for key, value in student.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_methods_whose_targets_are_not_there_are_left_out(student):
    found = gradient_cosines(student, RGB_IMAGENET, [logits_of(make_pair(0.1))])
    assert set(found) == {"logit", "cwd", "dkd"}  # ifvd and skd train a discriminator too


def test_it_is_the_mean_over_batches(student):
    pairs = [logits_of(make_pair(0.5, seed=seed)) for seed in (1, 2)]
    apart = [gradient_cosines(student, RGB_IMAGENET, [pair])["logit"] for pair in pairs]
    assert gradient_cosines(student, RGB_IMAGENET, pairs)["logit"] == pytest.approx(sum(apart) / 2, abs=2e-3)
