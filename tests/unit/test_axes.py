"""Axes: round ticks, labels that do not overlap, and ranges that contain their values."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcache.distill.report.axes import Scale, label, nice_ticks, number_text, padded, spread


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (71.2, 73.9, [72, 73]), (-0.3, 0.9, [-0.2, 0, 0.2, 0.4, 0.6, 0.8])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high, 3 if high > 70 else 6) == pytest.approx(ticks)


@given(st.lists(st.floats(-50, 450), min_size=1, max_size=30))
def test_labels_keep_apart_in_their_order(wanted: list[float]) -> None:
    places = spread(wanted, 16, 20, 400)
    ordered = [places[index] for index in sorted(range(len(wanted)), key=lambda index: wanted[index])]
    gap = min(16, 380 / max(1, len(wanted) - 1))
    assert all(after - before >= gap - 1e-6 for before, after in pairwise(ordered))
    assert ordered[0] >= 20 - 1e-6 and ordered[-1] <= 400 + 1e-6


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([300, 50, 100], 16, 20, 400) == [300, 50, 100]
    assert spread([100, 100], 16, 20, 400) == [92, 108]


@pytest.mark.parametrize("values", [[0.0], [70.0], [70.0, 70.0], [-1.0, 3.0]])
def test_a_stretch_has_a_width(values: list[float]) -> None:
    low, high = padded(values)
    assert low < min(values) and high > max(values)


def test_a_logarithmic_scale_gives_equal_ratios_equal_room() -> None:
    scale = Scale(low=1, high=100, start_px=0, end_px=200, logarithmic=True)
    assert [scale(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])


def test_numbers_and_names_are_short() -> None:
    assert [number_text(value) for value in (40000, 2.5, -0.5)] == ["40k", "2.5", "\N{MINUS SIGN}0.5"]
    cut = label("a" * 40, 0, 0)
    assert f"<title>{'a' * 40}</title>" in cut and "a" * 23 + "…<" in cut
