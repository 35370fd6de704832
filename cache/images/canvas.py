"""A canvas for drawn scenes: flat shapes in perspective, each with a class, painted from far to near.

All arithmetic is on integers, and all randomness comes from `shuffle.random_words`. So a picture has the same bytes on
every machine. World coordinates are in centimetres: x to the right of the camera, y up from the ground, z ahead.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.shuffle import random_words

Colour = tuple[int, int, int]

_NOISE_CELL = 8  # size in pixels of the finest blotches; the coarser octave's are four times as large


class Dice:
    """Integers drawn one after the other from a named stream."""

    def __init__(self, name: str) -> None:
        self._name = name
        # If a scene should need more, `between` starts again at the front.
        self._words = random_words(f"{name} dice", 4096).tolist()
        self._next = 0

    def between(self, least: int, most: int) -> int:
        """An integer from `least` to `most`, both included."""
        word: int = self._words[self._next % len(self._words)]
        self._next += 1
        return least + (word * (most - least + 1) >> 64)

    def chance(self, percent: int) -> bool:
        """True in `percent` of 100 cases."""
        return self.between(1, 100) <= percent

    def choose(self, among: Sequence[Colour]) -> Colour:
        """One of the colours."""
        return among[self.between(0, len(among) - 1)]

    def near(self, colour: Colour, spread: int) -> Colour:
        """A colour whose brightness is within `spread` levels of the given one, with a slightly different tint."""
        shift = self.between(-spread, spread)
        red, green, blue = (c + shift + self.between(-spread // 3, spread // 3) for c in colour)
        return red, green, blue

    def any_colour(self) -> Colour:
        """A colour that is neither very dark nor very bright."""
        return self.between(15, 235), self.between(15, 235), self.between(15, 235)

    def bytes(self, what: str, *shape: int) -> NDArray[np.uint8]:
        """Random bytes of the given shape, uint8, from a stream of their own."""
        count = int(np.prod(shape))
        words = random_words(f"{self._name} {what}", -(-count // 8))
        return words.astype("<u8").view(np.uint8)[:count].reshape(shape)


class Canvas:
    """An image (H, W, 3) int16 and its label (H, W) uint8 while they are painted, seen by one camera."""

    def __init__(self, height: int, width: int, dice: Dice, background: int) -> None:
        self.height, self.width = height, width
        self.image = np.zeros((height, width, 3), np.int16)
        self.label = np.full((height, width), background, np.uint8)
        self.centre = width * dice.between(40, 60) // 100  # column of the vanishing point
        self.horizon = height * dice.between(38, 50) // 100  # row
        self.focal = height * dice.between(170, 220) // 100  # pixels
        self.eye = dice.between(140, 220)  # centimetres above the ground
        self.haze = (200, 205, 210)
        self.haze_distance = dice.between(6000, 20000)  # centimetres at which half of a colour is haze
        self.blotches = _blotches(height, width, dice)  # (H, W) int16, about -64..64

    def x(self, x: int, z: int) -> int:
        """The column in which a point of the world appears."""
        return self.centre + x * self.focal // z

    def y(self, y: int, z: int) -> int:
        """The row in which a point of the world appears."""
        return self.horizon + (self.eye - y) * self.focal // z

    def in_haze(self, colour: Colour, z: int) -> Colour:
        """A colour as it looks from a distance."""
        red, green, blue = (
            c + (h - c) * z // (z + self.haze_distance) for c, h in zip(colour, self.haze, strict=True)
        )
        return red, green, blue

    def rectangle(
        self, left: int, top: int, right: int, bottom: int, class_id: int, colour: Colour, rough: int = 8
    ) -> None:
        """Paint rows top..bottom-1 and columns left..right-1; at least one pixel in each direction."""
        region = self._clip(left, top, max(right, left + 1), max(bottom, top + 1))
        self._paint(region, None, class_id, colour, rough)

    def ellipse(
        self, x: int, y: int, half_width: int, half_height: int, class_id: int, colour: Colour, rough: int = 8
    ) -> None:
        """Paint an ellipse around (x, y). The rougher its texture, the more frayed its edge."""
        half_width, half_height = max(half_width, 1), max(half_height, 1)
        region = self._clip(x - half_width, y - half_height, x + half_width + 1, y + half_height + 1)
        rows, columns = self._grid(region)
        across, down = (columns - x) * half_height, (rows - y) * half_width
        inside = across * across + down * down
        limit = (half_width * half_height) ** 2
        frayed = limit + limit * self.blotches[region].astype(np.int64) * rough // 4096
        self._paint(region, inside <= frayed, class_id, colour, rough)

    def polygon(
        self, points: Sequence[tuple[int, int]], class_id: int, colour: Colour, rough: int = 8, bars: int = 0
    ) -> None:
        """Paint a convex polygon with these (column, row) corners, in either direction. With `bars` it is a fence of
        upright bars, each so many columns wide: the class covers all of it, the colour only every other bar."""
        columns_of, rows_of = [p[0] for p in points], [p[1] for p in points]
        region = self._clip(min(columns_of), min(rows_of), max(columns_of) + 1, max(rows_of) + 1)
        rows, columns = self._grid(region)
        edges = [
            (columns - x0) * (y1 - y0) - (rows - y0) * (x1 - x0)
            for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True)
        ]
        # A point is inside if it is on the same side of all edges. Both signs, since corners come in either direction.
        mask = np.logical_and.reduce([edge >= 0 for edge in edges])
        mask |= np.logical_and.reduce([edge <= 0 for edge in edges])
        np.copyto(self.label[region], np.uint8(class_id), where=mask)
        if bars:
            mask &= columns % (2 * bars) < bars
        self._paint(region, mask, None, colour, rough)

    def facade(
        self,
        side_x: int,
        near: int,
        far: int,
        height: int,
        class_id: int,
        colour: Colour,
        rough: int,
        bars: int = 0,
    ) -> None:
        """Paint a wall along the street: the plane x = side_x from z = near to z = far."""
        corners = ((0, near), (height, near), (height, far), (0, far))
        points = [(self.x(side_x, z), self.y(y, z)) for y, z in corners]
        self.polygon(points, class_id, self.in_haze(colour, (near + far) // 2), rough, bars)

    def openings(
        self, side_x: int, near: int, far: int, height: int, pitch: tuple[int, int], colour: Colour
    ) -> None:
        """Repaint a grid of openings (windows) on a facade, in perspective; `pitch` is (along, up) in centimetres."""
        columns = sorted((self.x(side_x, near), self.x(side_x, far)))
        region = self._clip(
            columns[0], min(self.y(height, near), self.y(height, far)), columns[1] + 1, self.y(0, near)
        )
        rows, columns_at = self._grid(region)
        offset = columns_at - self.centre
        # Invert the projection: from a pixel's column to the z of the wall there, from its row to the height.
        z = np.clip(side_x * self.focal // np.where(offset == 0, 1, offset), near, far)
        y = self.eye - (rows - self.horizon) * z // self.focal
        holes = (
            (z % pitch[0] * 2 > pitch[0]) & (y % pitch[1] * 5 > 2 * pitch[1]) & (y > 60) & (y < height - 40)
        )
        self._paint(region, holes, None, self.in_haze(colour, (near + far) // 2), 6)

    def darken(self, x: int, y: int, half_width: int, half_height: int, percent: int) -> None:
        """Darken an ellipse, as a shadow does. The label does not change."""
        region = self._clip(x - half_width, y - half_height, x + half_width + 1, y + half_height + 1)
        rows, columns = self._grid(region)
        half_width, half_height = max(half_width, 1), max(half_height, 1)
        across, down = (columns - x) * half_height, (rows - y) * half_width
        inside = (across * across + down * down <= (half_width * half_height) ** 2)[..., None]
        shaded = self.image[region]
        np.copyto(shaded, shaded * percent // 100, where=inside)

    def develop(self, dice: Dice) -> NDArray[np.uint8]:
        """The finished image (H, W, 3) uint8: with light, tint, a brightness gradient and camera noise."""
        gains = np.array([dice.between(78, 118) for _ in range(3)], np.int32) + dice.between(-12, 8)
        slope = dice.between(-30, 30)
        columns = np.arange(self.width, dtype=np.int32) * slope // self.width - slope // 2 + 100
        lit = self.image.astype(np.int32) * gains // 100 * columns[None, :, None] // 100
        noise = dice.bytes("noise", self.height, self.width, 3).astype(np.int32)
        lit += (noise - 128) * dice.between(6, 26) >> 7
        lit += (self.blotches[::-1, :, None].astype(np.int32) * dice.between(4, 16)) >> 6
        developed: NDArray[np.uint8] = np.clip(lit, 0, 255).astype(np.uint8)
        return developed

    def _paint(
        self,
        region: tuple[slice, slice],
        mask: NDArray[np.bool_] | None,
        class_id: int | None,
        colour: Colour,
        rough: int,
    ) -> None:
        texture = (self.blotches[region].astype(np.int32) * rough >> 5)[..., None]
        painted = (np.array(colour, np.int32) + texture).astype(np.int16)
        where = True if mask is None else mask[..., None]
        np.copyto(self.image[region], painted, where=where)
        if class_id is not None:
            np.copyto(self.label[region], np.uint8(class_id), where=True if mask is None else mask)

    def _clip(self, left: int, top: int, right: int, bottom: int) -> tuple[slice, slice]:
        left, right = (min(max(side, 0), self.width) for side in (left, right))
        top, bottom = (min(max(side, 0), self.height) for side in (top, bottom))
        return slice(top, max(bottom, top)), slice(left, max(right, left))

    def _grid(self, region: tuple[slice, slice]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = region
        return np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)[None, :]


def _blotches(height: int, width: int, dice: Dice) -> NDArray[np.int16]:
    """Two octaves of value noise, (H, W) int16: random numbers on a grid, blended bilinearly."""
    total = np.zeros((height, width), np.int32)
    for cell, weight in ((_NOISE_CELL, 1), (4 * _NOISE_CELL, 2)):
        cell = max(2, cell * height // 256)
        grid = (
            dice.bytes(f"blotches {cell} {weight}", height // cell + 2, width // cell + 2).astype(np.int32)
            - 128
        )
        row, column = np.arange(height), np.arange(width)
        down, across = (row % cell)[:, None], (column % cell)[None, :]
        top, left = row // cell, column // cell
        upper = grid[top][:, left] * (cell - across) + grid[top][:, left + 1] * across
        lower = grid[top + 1][:, left] * (cell - across) + grid[top + 1][:, left + 1] * across
        blended = weight * (upper * (cell - down) + lower * down) // (cell * cell)
        total += blended.astype(np.int32)
    return (total // 6).astype(np.int16)
