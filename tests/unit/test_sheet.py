"""Picture sheets: which pixels show what, not how beautiful they are."""

import math

import numpy as np
import pytest

from kdcache.cache.images.classes import IGNORE, ClassSet
from kdcache.cache.images.sheet import (
    BACKGROUND_RGB,
    NO_LABEL_RGB,
    PANEL_WIDTH_PX,
    SheetRow,
    colour_classes,
    draw_grid,
    draw_sheet,
    entropy,
    feature_colours,
    legend_of,
)

CLASSES = ClassSet("three", ("road", "car", "sky"), ((128, 64, 128), (0, 0, 142), (70, 130, 180)))


def make_row(seed: int = 0, **targets: object) -> SheetRow:
    generator = np.random.default_rng(seed)
    arrays = {
        "image": generator.integers(0, 256, (32, 64, 3), dtype=np.uint8),
        "label": generator.choice(np.array([0, 1, IGNORE], np.uint8), (32, 64)),
        "logits": generator.normal(size=(3, 4, 8)),
        "features": generator.normal(size=(6, 4, 8)),
    }
    return SheetRow(caption=f"image-{seed}, view 3", valid_size=(24, 64), **{**arrays, **targets})


def colours_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


class TestColours:
    def test_are_the_palettes_and_grey_where_there_is_no_label(self) -> None:
        coloured = colour_classes(np.array([[0, 1], [2, IGNORE]], np.uint8), CLASSES)
        assert coloured.tolist() == [
            [list(CLASSES.palette[0]), list(CLASSES.palette[1])],
            [list(CLASSES.palette[2]), list(NO_LABEL_RGB)],
        ]

    def test_legend_names_what_is_there_in_the_classes_order(self) -> None:
        assert [name for name, _ in legend_of({2, 0, IGNORE}, CLASSES)] == ["road", "sky", "no label"]

    def test_entropy(self) -> None:
        logits = np.stack([np.zeros((3, 1, 1)), np.array([1e4, 0.0, 0.0]).reshape(3, 1, 1)])
        assert entropy(logits[0]).item() == pytest.approx(math.log(3))
        assert entropy(logits[1]).item() == pytest.approx(0.0, abs=1e-9)
        p = np.exp([1.0, 2.0, 3.0]) / np.exp([1.0, 2.0, 3.0]).sum()
        assert entropy(np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1)).item() == pytest.approx(
            -(p * np.log(p)).sum()
        )

    def test_features_show_their_strongest_direction_in_red(self) -> None:
        maps = np.zeros((5, 4, 10))
        maps[1] = np.linspace(-30, 30, 10)
        maps[3] = np.linspace(-1, 1, 4)[:, None]
        (picture,) = feature_colours([maps])
        assert picture.dtype == np.uint8 and picture.shape == (4, 10, 3)
        assert (np.diff(picture[0, :, 0].astype(int)) >= 0).all() and picture[0, -1, 0] - picture[
            0, 0, 0
        ] == 255
        assert (np.diff(picture[:, 0, 1].astype(int)) >= 0).all() and len(np.unique(picture[0, :, 1])) == 1

    def test_equal_features_have_equal_colours_in_every_map(self) -> None:
        maps = np.random.default_rng(0).normal(size=(6, 4, 8))
        first, second = feature_colours([maps, maps[:, ::-1]])
        assert np.array_equal(first, second[::-1])

    @pytest.mark.parametrize("channels", [1, 2])
    def test_few_channels_and_constant_maps_are_no_trouble(self, channels: int) -> None:
        (picture,) = feature_colours([np.full((channels, 2, 3), 1.5)])
        assert picture.shape == (2, 3, 3)


class TestSheet:
    @pytest.mark.parametrize(
        ("gone", "columns"),
        [((), 5), (("features",), 4), (("logits",), 3), (("label", "logits", "features"), 1)],
    )
    def test_a_target_that_is_missing_leaves_its_column_out(
        self, gone: tuple[str, ...], columns: int
    ) -> None:
        rows = [make_row(seed, **dict.fromkeys(gone)) for seed in range(2)]
        sheet = draw_sheet(rows, CLASSES, "streets train, teacher pspnet_resnet101")
        assert sheet.width // PANEL_WIDTH_PX == columns

    def test_a_map_is_shown_cell_by_cell_and_padding_as_without_label(self) -> None:
        logits = np.zeros((3, 4, 8))
        logits[2] = 1.0
        logits[1, 0, 0] = 5.0
        row = make_row(label=None, features=None, logits=logits)
        panel = np.asarray(draw_sheet([row], CLASSES, ""))[:, PANEL_WIDTH_PX + 16 + 8 :][:, :PANEL_WIDTH_PX]
        top = next(y for y in range(len(panel)) if tuple(panel[y, 0]) == CLASSES.palette[1])
        picture = panel[top : top + PANEL_WIDTH_PX // 2]
        assert colours_of(picture[:40, :40]) == {CLASSES.palette[1]}
        assert colours_of(picture[40:120]) == colours_of(picture[:40, 40:]) == {CLASSES.palette[2]}
        assert colours_of(picture[120:]) == {NO_LABEL_RGB}

    def test_rows_of_several_shapes_and_long_texts_stay_inside(self) -> None:
        tall = SheetRow(caption="x" * 500, image=np.zeros((90, 30, 3), np.uint8), valid_size=(90, 30))
        sheet = draw_sheet([make_row(), tall], CLASSES, "a very long header " * 40)
        pixels = np.asarray(sheet)
        assert colours_of(pixels[:, -8:]) == colours_of(pixels[-8:]) == {BACKGROUND_RGB}

    def test_a_legend_of_many_classes_takes_as_many_lines_as_it_needs(self) -> None:
        panels = {"crop": [np.zeros((8, 8, 3), np.uint8)]}
        names = [(f"class number {n}", (n, n, n)) for n in range(40)]
        few, many = (draw_grid(panels, captions=["a"], legend=names[:n]).height for n in (2, 40))
        assert many > few + 300

    def test_is_the_same_every_time(self) -> None:
        rows = [make_row(0), make_row(1)]
        sheets = [draw_sheet(rows, CLASSES, "header").tobytes() for _ in range(2)]
        assert sheets[0] == sheets[1]
