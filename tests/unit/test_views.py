"""Views: drawn from (seed, image id, view index, label) alone, within bounds, and the same in all versions."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdcache.cache.errors import DataError, UsageError
from kdcache.cache.views.drawing import crop_label, draw_view
from kdcache.cache.views.policy import DATASET_POLICIES, POLICIES, ViewPolicy, view_policy
from kdcache.cache.views.view import View

POLICY = ViewPolicy(crop_height_px=24, crop_width_px=40, photometric=True)

policies = st.builds(
    lambda low, span, step, base, **rest: ViewPolicy(
        scale_min=low,
        scale_max=low + span,
        scale_step=step,
        base_long_px=base[0],
        base_short_px=base[1],
        **rest,
    ),
    low=st.floats(0.05, 2),
    span=st.floats(0, 2),
    step=st.sampled_from([0.0, 0.1, 0.25]),
    base=st.sampled_from([(0, 0), (64, 16), (16, 16)]),
    crop_height_px=st.integers(1, 50),
    crop_width_px=st.integers(1, 50),
    flip_probability=st.floats(0, 1),
    photometric=st.booleans(),
    cat_max_ratio=st.sampled_from([0.3, 0.75, 1.0]),
)


def blocks(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A label of 8x8 blocks of five classes and some void."""
    ids = np.array([0, 1, 2, 3, 4, 255], np.uint8)
    coarse = ids[np.random.default_rng(seed).integers(0, 6, (size[0] // 8 + 1, size[1] // 8 + 1))]
    return np.kron(coarse, np.ones((8, 8), np.uint8))[: size[0], : size[1]]


@settings(max_examples=150, deadline=None)
@given(policies, st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**63 - 1), st.integers(0, 500))
def test_every_view_lies_in_its_image_and_in_its_crop(
    policy: ViewPolicy, height: int, width: int, seed: int, index: int
) -> None:
    view = draw_view(policy, seed, "a", index, (height, width), blocks((height, width)))
    assert view.top + view.box_height <= height
    assert view.left + view.box_width <= width
    assert view.height <= policy.crop_height_px
    assert view.width <= policy.crop_width_px
    assert policy.scale_min * 1000 - 0.5 <= view.scale_milli <= policy.scale_max * 1000 + 0.5
    assert View.from_row(view.to_row()) == view
    assert crop_label(view, blocks((height, width))).shape == (view.height, view.width)


GOLDEN = [
    [1424, 27, 56, 17, 28, 24, 40, 0, -20, 1000, 1000, -20],
    [912, 3, 1, 26, 44, 24, 40, 0, 0, 1000, 1276, 0],
    [1673, 4, 18, 15, 24, 24, 40, 0, -22, 1000, 551, -33],
    [953, 0, 38, 11, 42, 10, 40, 1, 0, 851, 707, 0],
    [1668, 89, 196, 307, 307, 512, 512, 1, -7, 1000, 1000, 0],
]


def test_rows_never_change() -> None:
    """If this changes, the generator changed, and the views of all existing stores would be drawn differently."""
    label = blocks((60, 90))
    policy = replace(POLICY, cat_max_ratio=0.4)
    drawn = [draw_view(policy, 7, "aachen/aachen_000001", k, (60, 90), label).to_row() for k in range(3)]
    drawn.append(draw_view(POLICY, 2**40, "Zürich", 5, (11, 300), None).to_row())
    drawn.append(draw_view(DATASET_POLICIES["ade20k"], 0, "ADE_train_00000001", 0, (512, 683), None).to_row())
    assert drawn == GOLDEN


def test_a_view_depends_on_each_of_its_arguments_and_on_nothing_else() -> None:
    base = draw_view(POLICY, 1, "a", 0, (60, 90), None)
    assert draw_view(POLICY, 1, "a", 0, (60, 90), None) == base
    others = [
        draw_view(POLICY, 2, "a", 0, (60, 90), None),
        draw_view(POLICY, 1, "b", 0, (60, 90), None),
        draw_view(POLICY, 1, "a", 1, (60, 90), None),
    ]
    assert len({base, *others}) == 4


def test_the_label_is_looked_at_only_where_the_policy_says_so() -> None:
    uniform = np.zeros((60, 90), np.uint8)
    assert draw_view(POLICY, 1, "a", 0, (60, 90), uniform) == draw_view(POLICY, 1, "a", 0, (60, 90), None)
    strict = replace(POLICY, cat_max_ratio=0.75)
    assert draw_view(strict, 1, "a", 0, (60, 90), uniform) != draw_view(strict, 1, "a", 0, (60, 90), None)


def test_draws_follow_their_distributions() -> None:
    views = [draw_view(POLICY, 0, f"image {k}", k, (60, 90), None) for k in range(4000)]
    scales = np.array([v.scale_milli for v in views])
    counts, _ = np.histogram(scales, bins=10, range=(500, 2001))
    assert (np.abs(counts - 400) < 100).all()  # five standard deviations
    assert abs(sum(v.flip for v in views) - 2000) < 160
    hues = np.array([v.hue_degrees for v in views])
    assert abs(int((hues == 0).sum()) - 2027) < 160
    assert (hues.min(), hues.max()) == (-36, 36)
    assert abs(np.corrcoef(scales, hues)[0, 1]) < 0.08


def test_a_step_gives_that_grid_of_scales() -> None:
    policy = view_policy("cityscapes", policy="cirkd")
    scales = Counter(draw_view(policy, 3, "a", k, (1024, 2048), None).scale_milli for k in range(800))
    assert sorted(scales) == list(range(500, 2001, 100))


@pytest.mark.parametrize(
    ("size", "scaled"), [((512, 683), (512, 683)), ((500, 375), (683, 512)), ((100, 800), (256, 2048))]
)
def test_base_fits_the_image_as_mmsegmentation_does(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    policy = ViewPolicy(
        crop_height_px=4000,
        crop_width_px=4000,
        scale_min=1,
        scale_max=1,
        base_long_px=2048,
        base_short_px=512,
    )
    view = draw_view(policy, 0, "a", 0, size, None)
    assert (view.height, view.width) == scaled
    assert (view.box_height, view.box_width) == size


def test_boxes_reach_every_edge() -> None:
    policy = ViewPolicy(crop_height_px=8, crop_width_px=8, scale_min=1, scale_max=1)
    views = [draw_view(policy, 0, "a", k, (10, 10), None) for k in range(200)]
    assert Counter((v.top, v.left) for v in views).keys() == {(t, x) for t in range(3) for x in range(3)}


def share_of_largest(view: View, label: NDArray[np.uint8]) -> float:
    counts = np.bincount(crop_label(view, label).ravel(), minlength=256)[:255]
    return float(counts.max() / max(counts.sum(), 1))


def test_cat_max_ratio_rejects_crops_of_one_class() -> None:
    label = np.zeros((200, 200), np.uint8)
    label[:, 70:] = blocks((200, 130))
    plain = ViewPolicy(crop_height_px=32, crop_width_px=32, scale_min=1, scale_max=1)
    strict = replace(plain, cat_max_ratio=0.75)
    free = [share_of_largest(draw_view(plain, 0, "a", k, label.shape, label), label) for k in range(200)]
    held = [share_of_largest(draw_view(strict, 0, "a", k, label.shape, label), label) for k in range(200)]
    assert sum(share >= 0.75 for share in free) > 30
    assert max(held) < 0.75


def test_cat_max_ratio_keeps_the_tenth_try_of_a_hopeless_label() -> None:
    void = np.full((60, 90), 255, np.uint8)
    strict = replace(POLICY, cat_max_ratio=0.75)
    view = draw_view(strict, 0, "a", 0, (60, 90), void)
    assert view == draw_view(strict, 0, "a", 0, (60, 90), np.zeros_like(void))


def test_one_try_is_kept_where_it_already_fits() -> None:
    label = blocks((200, 200))
    plain = ViewPolicy(crop_height_px=32, crop_width_px=32, scale_min=1, scale_max=1)
    for k in range(20):
        first = draw_view(plain, 0, "a", k, label.shape, label)
        kept = draw_view(replace(plain, cat_max_ratio=0.999), 0, "a", k, label.shape, label)
        assert kept == first


def test_a_label_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match="image x is 60x90, but its label is 60x91"):
        draw_view(POLICY, 0, "x", 0, (60, 90), blocks((60, 91)))


def test_policy_survives_json_and_pickle() -> None:
    policy = view_policy("ade20k", scale_max=1.75)
    assert ViewPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_equal_policies_have_equal_json() -> None:
    loose = ViewPolicy(crop_height_px=8, crop_width_px=8, scale_min=1, scale_max=2, cat_max_ratio=0.75000001)
    exact = ViewPolicy(crop_height_px=8, crop_width_px=8, scale_min=1.0, scale_max=2.0, cat_max_ratio=0.75)
    assert json.dumps(loose.to_dict()) == json.dumps(exact.to_dict())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop_height_px", 0),
        ("crop_width_px", 12.5),
        ("scale_min", 0.0),
        ("scale_max", 0.4),
        ("scale_max", float("nan")),
        ("scale_step", -0.1),
        ("flip_probability", 1.01),
        ("cat_max_ratio", 0),
        ("photometric", 1),
        ("base_long_px", 2048),
    ],
)
def test_values_out_of_range_are_named(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        replace(POLICY, **{field: value})


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(UsageError, match="rotate"):
        ViewPolicy.from_dict({**POLICY.to_dict(), "rotate": 10})


@pytest.mark.parametrize(
    ("field", "value"),
    [("box_height", 0), ("width", 2**20), ("flip", 2), ("top", -1), ("contrast_milli", 2**31)],
)
def test_a_view_outside_every_policy_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        replace(draw_view(POLICY, 0, "a", 0, (60, 90), None), **{field: value})


def test_policies_by_dataset_name() -> None:
    assert view_policy("cityscapes") == DATASET_POLICIES["cityscapes"]
    small = view_policy("streets:64x128:200:3")
    assert (small.crop_height_px, small.crop_width_px) == (64, 128)
    assert view_policy("streets:64x128", crop_height_px=32, crop_width_px=None).crop_height_px == 32
    skd = view_policy("cityscapes", policy="skd", flip_probability=0.0)
    assert (skd.crop_width_px, skd.scale_max, skd.photometric, skd.flip_probability) == (512, 2.1, False, 0.0)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dataset", DATASET_POLICIES)
def test_every_policy_fits_every_dataset(policy: str, dataset: str) -> None:
    draw_view(view_policy(dataset, policy), 0, "a", 0, (400, 600), None)


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        ({"dataset_name": "kitti"}, "cityscapes"),
        ({"dataset_name": "camvid", "policy": "x"}, "mmseg"),
        ({"dataset_name": "camvid", "crop": 1}, "crop_height_px"),
    ],
)
def test_unknown_names_list_the_known_ones(arguments: dict[str, Any], known: str) -> None:
    with pytest.raises(UsageError, match="unknown") as caught:
        view_policy(**arguments)
    assert known in (caught.value.hint or "")
