"""Cross-entropy without enlarged logits is torch's cross-entropy of enlarged logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdcache.cache.images.classes import IGNORE
from kdcache.distill.losses import enlarged
from kdcache.distill.losses.enlarged import enlarged_cross_entropy


def by_torch(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    size = (labels.shape[1], labels.shape[2])
    whole = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(whole, labels.long(), ignore_index=IGNORE, reduction="sum")


def draw(map_size: tuple[int, int], size: tuple[int, int], classes: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, classes + 1, (3, *size))
    labels[labels == classes] = IGNORE
    return torch.randn(3, classes, *map_size, dtype=torch.float64, requires_grad=True), labels.to(torch.uint8)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("band", [1, 700, 2**20])
@pytest.mark.parametrize(
    ("map_size", "size"),
    [((6, 5), (48, 40)), ((6, 5), (41, 37)), ((1, 1), (9, 8)), ((7, 9), (7, 9)), ((9, 8), (5, 6))],
)
def test_values_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
    map_size: tuple[int, int],
    size: tuple[int, int],
    band: int,
    align_corners: bool,
) -> None:
    monkeypatch.setitem(enlarged.BANDS, "cpu", band)
    logits, labels = draw(map_size, size)
    wanted = by_torch(logits, labels, align_corners)
    found = enlarged_cross_entropy(logits, labels, align_corners)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for scale in (1.0, -0.3):
        ((of_found,), (of_wanted,)) = (
            torch.autograd.grad(scale * loss, logits, retain_graph=True) for loss in (found, wanted)
        )
        torch.testing.assert_close(of_found, of_wanted, rtol=1e-11, atol=1e-13)


def test_no_label_gives_a_zero_with_a_graph() -> None:
    logits, labels = draw((6, 5), (48, 40))
    loss = enlarged_cross_entropy(logits, torch.full_like(labels, IGNORE), False)
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


def test_logits_far_from_zero_stay_finite() -> None:
    logits, labels = draw((6, 5), (48, 40))
    far = (logits.detach() * 1e4).float().requires_grad_()
    loss = enlarged_cross_entropy(far, labels, False)
    loss.backward()
    assert torch.isfinite(loss) and far.grad is not None and torch.isfinite(far.grad).all()
    torch.testing.assert_close(loss, by_torch(far, labels, False), rtol=1e-5, atol=0)
