"""Class sets: the tables against facts that can be computed or looked up elsewhere."""

import numpy as np
import pytest
from torchvision.datasets import Cityscapes

from kdcache.cache.images.classes import (
    CITYSCAPES_19,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_LAST_LABEL_ID,
    CLASS_SETS,
    IGNORE,
    ClassSet,
    colour_map,
)


def test_cityscapes_is_what_torchvision_lists():
    trained = {c.train_id: c for c in Cityscapes.classes if 0 <= c.train_id < IGNORE}
    assert CITYSCAPES_19.names == tuple(trained[i].name for i in range(19))
    assert CITYSCAPES_19.palette == tuple(trained[i].color for i in range(19))
    assert tuple(trained[i].id for i in range(19)) == CITYSCAPES_LABEL_IDS
    assert max(c.id for c in Cityscapes.classes) == CITYSCAPES_LAST_LABEL_ID


@pytest.mark.parametrize(
    "name, count", [("cityscapes", 19), ("ade20k", 150), ("voc2012", 21), ("camvid", 11)]
)
def test_class_sets(name, count):
    classes = CLASS_SETS[name]
    assert len(classes) == len(classes.names) == len(classes.palette) == count
    assert len(set(classes.names)) == count
    assert all(part == part.strip() and "\n" not in part for part in classes.names)
    assert all(0 <= value <= 255 for colour in classes.palette for value in colour)


@pytest.mark.parametrize(
    "index, name, colour",
    [
        (0, "wall", (120, 120, 120)),
        (7, "bed", (204, 5, 255)),  # mmsegmentation's name ends with a space
        (44, "chest of drawers", (6, 51, 255)),
        (64, "coffee table", (0, 255, 112)),
        (82, "light", (255, 173, 0)),
        (136, "traffic light", (41, 0, 255)),
        (149, "flag", (92, 0, 255)),
    ],
)
def test_ade20k_rows(index, name, colour):
    """Rows of objectInfo150 and of semseg's colours, here and there in the table."""
    classes = CLASS_SETS["ade20k"]
    assert (classes.names[index], classes.palette[index]) == (name, colour)


def test_colour_map_is_the_devkits():
    """VOClabelcolormap as the development kit writes it, bit by bit."""
    expected = np.zeros((256, 3), np.uint8)
    for index in range(256):
        rest = index
        for bit in range(8):
            for channel in range(3):
                expected[index, channel] |= (rest >> channel & 1) << (7 - bit)
            rest >>= 3
    assert colour_map(256) == tuple(tuple(row) for row in expected.tolist())
    assert CLASS_SETS["voc2012"].palette[20] == (0, 64, 128)
    assert len(set(colour_map(254))) == 254


@pytest.mark.parametrize("names, colours", [(("a", "b"), 1), (("a", "a"), 2)])
def test_a_class_set_is_whole(names, colours):
    with pytest.raises(AssertionError):
        ClassSet("made-up", names, colour_map(colours))
