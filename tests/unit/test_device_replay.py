"""Replay in torch integers gives the bytes of the NumPy arithmetic, for any view."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdcache.cache.errors import StoreMismatchError
from kdcache.cache.views.device_replay import Boxes, box_bytes, box_rows, copy_boxes, replay_boxes
from kdcache.cache.views.drawing import draw_view
from kdcache.cache.views.policy import ViewPolicy
from kdcache.cache.views.replay import replay
from kdcache.cache.views.view import View

POLICY = ViewPolicy(crop_height_px=24, crop_width_px=32, photometric=True)


def picture(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 20, size, np.uint8)


def pack_boxes(
    views: list[View],
    policy: ViewPolicy,
    images: list[np.ndarray],
    labels: list[np.ndarray | None],
    buffer: torch.Tensor | None = None,
) -> Boxes:
    if buffer is None:
        buffer = torch.empty(4 * box_bytes(views), dtype=torch.uint8)
    rows = box_rows(views, policy, images, labels)
    copy_boxes(views, images, labels, buffer)
    return Boxes(buffer, rows)


def require_equal(
    views: list[View],
    policy: ViewPolicy,
    images: list[np.ndarray],
    labels: list[np.ndarray | None],
    device: str = "cpu",
) -> None:
    boxes = pack_boxes(views, policy, images, labels).to(torch.device(device))
    found = [tensor.cpu().numpy() for tensor in replay_boxes(boxes, policy)]
    for n, (view, image, label) in enumerate(zip(views, images, labels, strict=True)):
        crop = replay(view, policy, image, label)
        np.testing.assert_array_equal(found[0][n], crop.image, err_msg=str(view))
        np.testing.assert_array_equal(found[1][n], crop.label, err_msg=str(view))
        assert found[2][n].tolist() == [crop.height, crop.width]


def random_views(count: int, seed: int) -> Iterator[tuple[View, np.ndarray, np.ndarray | None]]:
    """Views that policies draw and views that none would: any box of an image, resized to anything that fits."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        size = tuple(int(side) for side in rng.integers(1, 70, 2))
        image, label = picture(rng, (size[0], size[1]))
        if index % 2:
            view = draw_view(POLICY, seed, "a", index, (size[0], size[1]), label)
        else:
            box = [int(rng.integers(1, side + 1)) for side in size]
            view = View(
                scale_milli=1000,
                top=int(rng.integers(0, size[0] - box[0] + 1)),
                left=int(rng.integers(0, size[1] - box[1] + 1)),
                box_height=box[0],
                box_width=box[1],
                height=int(rng.integers(1, POLICY.crop_height_px + 1)),
                width=int(rng.integers(1, POLICY.crop_width_px + 1)),
                flip=int(rng.integers(0, 2)),
                brightness_levels=int(rng.integers(-255, 256)),
                contrast_milli=int(rng.integers(0, 4001)),
                saturation_milli=int(rng.integers(0, 4001)),
                hue_degrees=int(rng.integers(-180, 181)),
            )
        yield view, image, label if index % 5 else None


@pytest.mark.parametrize("seed", range(10))
def test_ten_thousand_random_views(seed: int) -> None:
    views, images, labels = (list(each) for each in zip(*random_views(1000, seed), strict=True))
    require_equal(views, POLICY, images, labels)


@pytest.mark.gpu
def test_ten_thousand_random_views_on_cuda() -> None:
    for seed in range(10):
        views, images, labels = (list(each) for each in zip(*random_views(1000, seed), strict=True))
        require_equal(views, POLICY, images, labels, "cuda")


@settings(max_examples=200, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 24), st.integers(1, 32)),
    st.integers(0, 1),
)
def test_every_small_box_at_every_size(box: tuple[int, int], size: tuple[int, int], flip: int) -> None:
    image, label = picture(np.random.default_rng(0), box)
    view = View(
        scale_milli=1000,
        top=0,
        left=0,
        box_height=box[0],
        box_width=box[1],
        height=size[0],
        width=size[1],
        flip=flip,
    )
    require_equal([view], POLICY, [image], [label])


@pytest.mark.parametrize("scale", [(0.5, 0.5), (2.0, 2.0), (0.1, 0.3), (4.0, 8.0)])
def test_scales_at_the_size_of_a_real_crop(scale: tuple[float, float]) -> None:
    policy = ViewPolicy(
        crop_height_px=256, crop_width_px=512, photometric=True, scale_min=scale[0], scale_max=scale[1]
    )
    image, label = picture(np.random.default_rng(1), (301, 611))
    views = [draw_view(policy, 0, "a", index, (301, 611), label) for index in range(4)]
    require_equal(views, policy, [image] * 4, [label] * 4)


def test_a_buffer_is_used_again_and_nothing_of_its_past_is_seen() -> None:
    rng = np.random.default_rng(2)
    image, label = picture(rng, (40, 50))
    views = [draw_view(POLICY, 0, "a", index, (40, 50), label) for index in range(3)]
    buffer = torch.full((4 * box_bytes(views),), 77, dtype=torch.uint8)
    for labels in ([label] * 3, [None, label, None]):
        boxes = pack_boxes(views, POLICY, [image] * 3, labels, buffer)
        assert boxes.pixels.data_ptr() == buffer.data_ptr()
        image_crops, label_crops, _ = replay_boxes(boxes, POLICY)
        for n, view in enumerate(views):
            crop = replay(view, POLICY, image, labels[n])
            np.testing.assert_array_equal(image_crops[n].numpy(), crop.image)
            np.testing.assert_array_equal(label_crops[n].numpy(), crop.label)


def test_an_image_that_is_too_small_is_refused() -> None:
    image, label = picture(np.random.default_rng(3), (40, 50))
    view = replace(draw_view(POLICY, 0, "a", 0, (40, 50), label), top=39, box_height=2)
    with pytest.raises(StoreMismatchError, match="at least 41x"):
        pack_boxes([view], POLICY, [image], [label])
