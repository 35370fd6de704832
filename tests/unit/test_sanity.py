"""The check of a teacher against labels: what it must refuse, and what it must accept."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdcache.cache.errors import TeacherError
from kdcache.cache.networks.network import build_network, network_config
from kdcache.cache.teachers.sanity import SCAN_CELLS, TeacherCheck, check_teacher, require_sane

CLASSES = 8
SIZE = (128, 192)
CELLS = (SIZE[0] // 8, SIZE[1] // 8)


def scenes(seed: int, count: int = 6) -> Tensor:
    """Labels like a street's: ground below, sky above, boxes of other classes in between, a stripe without a class."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    labels = torch.ones(count, *SIZE, dtype=torch.uint8)
    for label in labels:
        label[draw(60, 80) :] = 0
        for _ in range(9):
            top, left = draw(10, 90), draw(0, 170)
            label[top : top + draw(12, 50), left : left + draw(10, 60)] = draw(2, CLASSES)
        label[:, draw(0, 180) :][:, :4] = 255
    return labels


def logits_of(labels: Tensor, sharpness: float = 6.0) -> Tensor:
    """The output of a good teacher: the class at a cell's centre, slightly blurred."""
    cells = labels[:, 4::8, 4::8].long()
    hot = F.one_hot(torch.where(cells == 255, 0, cells), CLASSES).permute(0, 3, 1, 2).float() * sharpness
    return 0.7 * hot + 0.3 * F.avg_pool2d(hot, 3, stride=1, padding=1)


def weak_logits_of(labels: Tensor, share: float, seed: int) -> Tensor:
    """A teacher that is right on a share of 3x3-cell blocks and elsewhere draws a class by its frequency."""
    generator = torch.Generator().manual_seed(seed)
    good = logits_of(labels)
    blocks = (len(labels), 1, -(-CELLS[0] // 3), -(-CELLS[1] // 3))
    keep = F.interpolate(torch.rand(blocks, generator=generator), size=CELLS)[:, 0] < share
    counts = torch.bincount(labels[labels != 255].long(), minlength=CLASSES).float()
    drawn = torch.multinomial(counts, torch.Size(blocks).numel(), replacement=True, generator=generator)
    noise = F.interpolate(drawn.view(blocks).float(), size=CELLS)[:, 0].long()
    return F.one_hot(torch.where(keep, good.argmax(dim=1), noise), CLASSES).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("seed", range(4))
def test_a_good_teacher_passes(seed: int) -> None:
    labels = scenes(seed)
    check = check_teacher(logits_of(labels), labels)
    assert check.ok
    assert (check.best_shift, check.mirrored) == ((0, 0), False)
    assert check.accuracy is not None and check.accuracy > 0.85
    require_sane(check)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5])
def test_a_weak_teacher_passes(share: float, seed: int) -> None:
    labels = scenes(seed)
    check = check_teacher(weak_logits_of(labels, share, seed), labels)
    assert check.accuracy is not None and check.accuracy < 0.8
    assert check.ok, check.text


def test_a_teacher_of_the_large_classes_alone_passes() -> None:
    """A teacher trained for a minute only knows ground and the rest. Their outline is a plateau for the scan."""
    labels = scenes(1)
    coarse = F.avg_pool2d(logits_of(labels), 7, stride=1, padding=3, count_include_pad=False)
    coarse[:, 2:] -= 100
    check = check_teacher(coarse, labels)
    assert check.ok, check.text


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("preset", ["mmseg", "skd"])
def test_a_random_teacher_is_refused(seed: int, preset: str) -> None:
    torch.manual_seed(seed)
    network = build_network(network_config("pspnet_resnet18", CLASSES, preset, pool_ceil_mode=False)).eval()
    labels = scenes(seed)
    with torch.no_grad():
        images = labels.float()[:, None].expand(-1, 3, -1, -1) / CLASSES + 0.1 * torch.randn(6, 3, *SIZE)
        logits = network(images).logits
    centred = logits - logits.mean(dim=(0, 2, 3), keepdim=True)  # so that the argmax is not one class
    for outputs in (logits, centred):
        check = check_teacher(outputs, labels)
        assert not check.ok
        assert "chance" in check.text


def test_a_constant_teacher_and_a_shuffled_class_order_are_refused() -> None:
    labels = scenes(3)
    constant = torch.zeros(6, CLASSES, *CELLS)
    constant[:, 1] = 5.0
    check = check_teacher(constant, labels)
    assert check.accuracy == pytest.approx(check.chance)
    assert not check.ok
    assert not check_teacher(logits_of(labels).roll(3, dims=1), labels).ok


@settings(max_examples=10, deadline=None)
@given(st.integers(-SCAN_CELLS, SCAN_CELLS), st.integers(-SCAN_CELLS, SCAN_CELLS), st.integers(0, 3))
def test_a_shift_is_found(dy: int, dx: int, seed: int) -> None:
    labels = scenes(seed)
    check = check_teacher(logits_of(labels).roll((dy, dx), dims=(2, 3)), labels)
    assert check.best_shift == (dy, dx)
    assert check.ok == ((dy, dx) == (0, 0))
    if not check.ok:
        with pytest.raises(TeacherError, match="misaligned") as caught:
            require_sane(check)
        assert "--force" in str(caught.value.hint)


def test_a_mirrored_teacher_is_found() -> None:
    labels = scenes(0)
    check = check_teacher(logits_of(labels).flip(3), labels)
    assert check.mirrored and not check.ok
    assert "mirrored" in check.text


def test_padding_takes_no_part() -> None:
    labels = scenes(2)
    valid_size = torch.tensor([SIZE] * 3 + [(80, 120)] * 3)
    logits = logits_of(labels)
    check = check_teacher(logits, labels, valid_size)
    garbage = logits.clone()
    garbage[3:, :, 11:] = torch.randn(3, CLASSES, CELLS[0] - 11, CELLS[1]) * 50
    garbage[3:, :, :, 16:] = torch.randn(3, CLASSES, CELLS[0], CELLS[1] - 16) * 50
    assert check.ok
    assert check_teacher(garbage, labels, valid_size).accuracy == check.accuracy


def test_without_labels_nothing_is_judged() -> None:
    logits = torch.randn(2, CLASSES, *CELLS)
    for labels in (None, torch.full((2, *SIZE), 255, dtype=torch.uint8)):
        check = check_teacher(logits, labels)
        assert check.ok and check.accuracy is None
        assert "no labels" in check.text


def test_crops_of_one_class() -> None:
    labels = torch.full((3, *SIZE), 2, dtype=torch.uint8)
    logits = torch.zeros(3, CLASSES, *CELLS)
    logits[:, 2] = 1
    assert check_teacher(logits, labels).ok
    assert not check_teacher(logits.roll(1, dims=1), labels).ok


def test_labels_of_more_classes_than_the_teacher_has() -> None:
    check = check_teacher(torch.randn(1, 3, *CELLS), torch.full((1, *SIZE), 7, dtype=torch.uint8))
    assert not check.ok
    assert "class 7" in check.text


def test_logits_that_are_not_finite() -> None:
    labels = scenes(0)
    logits = logits_of(labels)
    logits[0, 0, 0, 0] = float("nan")
    assert not check_teacher(logits, labels).ok


@pytest.mark.parametrize("size", [(8, 8), (17, 30), (65, 97)])
def test_small_and_odd_crops(size: tuple[int, int]) -> None:
    labels = scenes(0)[:, : size[0], : size[1]].contiguous()
    cells = (-(-size[0] // 8), -(-size[1] // 8))
    logits = F.interpolate(
        F.one_hot(labels.long() % CLASSES, CLASSES).permute(0, 3, 1, 2).float(), size=cells
    )
    assert isinstance(check_teacher(logits, labels), TeacherCheck)


def test_a_check_travels_as_json() -> None:
    labels = scenes(0)
    check = check_teacher(logits_of(labels), labels)
    found = json.loads(json.dumps(check.to_dict()))
    assert found["best_shift"] == [0, 0]
    assert TeacherCheck(**(found | {"best_shift": tuple(found["best_shift"])})) == check
