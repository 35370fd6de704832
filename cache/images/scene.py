"""One street scene. It depends only on its size and name, in integer arithmetic: the same bytes on every machine.

The 19 classes of Cityscapes in perspective, from far to near: sky, skyline, buildings, walls, fences, trees and terrain
along the road, sidewalks, poles with lights and signs, vehicles, people. The colours of most classes overlap and change
from scene to scene, so a network has to learn shape and position. Large things are easy to learn, small and rare ones
are not.

The order of the calls of `dice` is part of a scene: any change of it, too, must raise streets.DRAWING_VERSION.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from kdcache.cache.images.canvas import Canvas, Colour, Dice

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)

_SKIES: tuple[Colour, ...] = (
    (120, 165, 220),
    (170, 190, 210),
    (205, 208, 212),
    (225, 215, 205),
    (150, 150, 165),
)
_STONES: tuple[Colour, ...] = (
    (150, 90, 75), (170, 150, 125), (125, 125, 130), (190, 185, 175), (95, 85, 80), (140, 120, 95), (165, 165, 185),
)  # fmt: skip
_GREENS: tuple[Colour, ...] = ((60, 95, 45), (85, 110, 60), (105, 115, 50), (130, 100, 50), (50, 75, 50))
_GROUNDS: tuple[Colour, ...] = ((100, 120, 65), (125, 115, 75), (120, 100, 75), (85, 105, 60))
_PAVEMENTS: tuple[Colour, ...] = ((135, 130, 128), (155, 145, 140), (115, 112, 115), (150, 130, 115))
_SIGNS: tuple[Colour, ...] = ((200, 40, 40), (40, 70, 180), (225, 200, 60), (230, 230, 230))
_LAMPS: tuple[Colour, ...] = ((230, 50, 40), (240, 180, 50), (60, 210, 120))
_SKINS: tuple[Colour, ...] = ((225, 180, 150), (160, 110, 80), (95, 65, 50))
_GLASS: Colour = (58, 68, 80)


@dataclass(frozen=True, slots=True)
class Thing:
    """Something on the ground. It is drawn after everything that is farther away."""

    z: int
    x: int
    draw: Callable[[Canvas, Dice, int, int], None]


@lru_cache(maxsize=8)  # callers ask for the image and the label of a scene one after the other
def draw_scene(height: int, width: int, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) uint8 and label (H, W) uint8 of the scene called `name`."""
    dice = Dice(f"streets {name}")
    canvas = Canvas(height, width, dice, background=SKY)
    half_road = dice.between(320, 650)
    curb = half_road + dice.between(150, 380)  # outer edge of the sidewalk, centimetres from the middle
    _draw_sky(canvas, dice)
    _draw_ground(canvas, dice, half_road, curb)
    for side in (-1, 1):
        _draw_roadside(canvas, dice, side, curb)
    things = _street_furniture(dice, half_road) + _traffic(dice, half_road) + _people(dice, half_road, curb)
    for thing in sorted(things, key=lambda thing: -thing.z):
        thing.draw(canvas, dice, thing.x, thing.z)
    return canvas.develop(dice), canvas.label


def _draw_sky(canvas: Canvas, dice: Dice) -> None:
    top = dice.near(dice.choose(_SKIES), 20)
    canvas.haze = dice.near((210, 210, 210), 25)
    bands = 12
    for band in range(bands):  # lighter towards the horizon
        red, green, blue = (c + (h - c) * band // bands for c, h in zip(top, canvas.haze, strict=True))
        first, last = (canvas.horizon * n // bands for n in (band, band + 1))
        canvas.rectangle(0, first, canvas.width, last + 1, SKY, (red, green, blue), dice.between(2, 14))
    for _ in range(dice.between(0, 4)):
        x, y = dice.between(0, canvas.width), dice.between(0, canvas.horizon * 2 // 3)
        size = canvas.height * dice.between(6, 20) // 100
        canvas.ellipse(x, y, 2 * size, size // 2, SKY, dice.near((230, 230, 232), 20), 30)
    x = 0
    while x < canvas.width:  # the skyline: far houses and trees
        wide = canvas.width * dice.between(3, 12) // 100 + 1
        high = canvas.height * dice.between(1, 12) // 100
        class_id, colours = (VEGETATION, _GREENS) if dice.chance(55) else (BUILDING, _STONES)
        colour = canvas.in_haze(dice.near(dice.choose(colours), 20), 9000)
        canvas.rectangle(x, canvas.horizon - high, x + wide, canvas.horizon + 1, class_id, colour, 14)
        x += wide


def _draw_ground(canvas: Canvas, dice: Dice, half_road: int, curb: int) -> None:
    far, near = 12000, canvas.eye * canvas.focal // max(canvas.height - canvas.horizon, 1)
    near = max(near * 9 // 10, 20)
    grass = dice.near(dice.choose(_GROUNDS), 18)
    canvas.rectangle(0, canvas.horizon + 1, canvas.width, canvas.height, TERRAIN, grass, 24)
    pavement, asphalt = dice.near(dice.choose(_PAVEMENTS), 22), dice.near((92, 90, 92), 26)
    canvas.polygon(_strip(canvas, -curb, curb, near, far), SIDEWALK, pavement, 12)
    canvas.polygon(_strip(canvas, -half_road, half_road, near, far), ROAD, asphalt, 12)
    mark = dice.near((200, 200, 195), 25)
    for lane in (-half_road // 2, 0, half_road // 2) if half_road > 480 else (0,):
        for z in range(near, 5000, 600):  # dashes three metres long
            canvas.polygon(_strip(canvas, lane - 8, lane + 8, z, z + 300), ROAD, canvas.in_haze(mark, z), 6)
    for _ in range(dice.between(0, 3)):  # shadows of things beside the road
        z = dice.between(500, 2500)
        x, wide = canvas.x(dice.between(-half_road, half_road), z), 400 * canvas.focal // z
        canvas.darken(x, canvas.y(0, z), wide, wide // 4, dice.between(50, 75))


def _strip(canvas: Canvas, left: int, right: int, near: int, far: int) -> list[tuple[int, int]]:
    """The corners of a strip of ground along the road."""
    ground = ((left, near), (left, far), (right, far), (right, near))
    return [(canvas.x(x, z), canvas.y(0, z)) for x, z in ground]


def _draw_roadside(canvas: Canvas, dice: Dice, side: int, curb: int) -> None:
    far = 9000
    while far > 250:
        near = max(far - dice.between(500, 1500) * (1 + far // 4000), 150)
        x = side * (curb + dice.between(0, 250))
        kind = dice.between(1, 100)
        if kind <= 42:
            _draw_building(canvas, dice, x, near, far)
        elif kind <= 62:
            for z in range(far, near, -dice.between(350, 600)):
                _draw_tree(canvas, dice, x + side * dice.between(0, 150), z)
        elif kind <= 76:
            canvas.facade(x, near, far, dice.between(120, 260), WALL, dice.near(dice.choose(_STONES), 25), 26)
        elif kind <= 94:
            bars = max(1, 8 * canvas.focal // near)
            colour = dice.near(dice.choose(_STONES), 40)
            canvas.facade(x, near, far, dice.between(90, 180), FENCE, colour, 8, bars)
        far = near - dice.between(0, 250)


def _draw_building(canvas: Canvas, dice: Dice, x: int, near: int, far: int) -> None:
    height = dice.between(500, 1800)
    colour = dice.near(dice.choose(_STONES), 25)
    end = canvas.x(x, near)
    left, right = (0, end) if x < 0 else (end, canvas.width)
    red, green, blue = (c * 82 // 100 for c in colour)  # the face towards the camera is in the shade
    canvas.rectangle(left, canvas.y(height, near), right, canvas.y(0, near), BUILDING, (red, green, blue), 14)
    canvas.facade(x, near, far, height, BUILDING, colour, 14)
    glass = dice.near((70, 80, 95), 30) if dice.chance(75) else dice.near((200, 190, 150), 25)
    canvas.openings(x, near, far, height, (dice.between(180, 400), dice.between(220, 380)), glass)


def _draw_tree(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    half = canvas.focal * 10 // z + 1
    foot, column = canvas.y(0, z), canvas.x(x, z)
    height = dice.between(300, 750)
    crown, bark = dice.near(dice.choose(_GREENS), 20), canvas.in_haze((75, 60, 48), z)
    canvas.rectangle(column - half, canvas.y(height, z), column + half, foot, VEGETATION, bark, 10)
    for _ in range(3):
        at = column + dice.between(-80, 80) * canvas.focal // z
        top = canvas.y(height - dice.between(-60, 120), z)
        wide, high = (dice.between(90, 190) * canvas.focal // z for _ in range(2))
        canvas.ellipse(at, top, wide, high, VEGETATION, canvas.in_haze(dice.near(crown, 14), z), 40)


def _street_furniture(dice: Dice, half_road: int) -> list[Thing]:
    """Poles along both curbs, some with a sign or a light."""
    things = []
    for side in (-1, 1):
        z = dice.between(400, 1200)
        while z < 6000:
            things.append(Thing(z, side * (half_road + dice.between(20, 70)), _draw_pole))
            z += dice.between(500, 1800)
    return things


def _traffic(dice: Dice, half_road: int) -> list[Thing]:
    """Vehicles on the lanes and at the curbs; rare kinds appear in some scenes only."""
    things = []
    kinds = [_draw_car] * dice.between(2, 6)
    for draw, percent in ((_draw_truck, 28), (_draw_bus, 28), (_draw_train, 24)):
        kinds += [draw] * dice.chance(percent)
    for draw in kinds:
        parked = draw is _draw_car and dice.chance(40)
        x = half_road - 110 if parked else dice.between(half_road // 5, half_road * 4 // 5)
        z = dice.between(550 if draw is _draw_car else 900, 3800)
        things.append(Thing(z, x * (1 if dice.chance(55) else -1), draw))
    return things


def _people(dice: Dice, half_road: int, curb: int) -> list[Thing]:
    """Pedestrians on the sidewalks and on the road; two-wheelers, some with a rider."""
    things = []
    for _ in range(dice.between(1, 6)):
        on_road = dice.chance(20)
        x = dice.between(0, half_road) if on_road else dice.between(half_road + 20, curb)
        things.append(Thing(dice.between(450, 2600), x * (1 if dice.chance(50) else -1), _draw_person))
    for draw, percent in ((_draw_bicycle, 55), (_draw_motorcycle, 45), (_draw_bicycle, 25)):
        if dice.chance(percent):
            x = dice.between(half_road // 2, curb)
            things.append(Thing(dice.between(450, 1800), x * (1 if dice.chance(50) else -1), draw))
    return things


def _draw_pole(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    column, foot = canvas.x(x, z), canvas.y(0, z)
    thick = max(1, 7 * canvas.focal // z)
    height = dice.between(280, 620)
    grey = canvas.in_haze(dice.near((105, 108, 105), 35), z)
    left = column - thick // 2
    canvas.rectangle(left, canvas.y(height, z), left + thick, foot, POLE, grey, 4)
    half = max(1, dice.between(26, 42) * canvas.focal // z)
    what = dice.between(1, 100)
    if what <= 35:
        _draw_sign(canvas, dice, column, canvas.y(dice.between(220, height), z), half, z)
    elif what <= 65:
        _draw_light(canvas, dice, column, canvas.y(height, z), max(1, half * 2 // 3))


def _draw_sign(canvas: Canvas, dice: Dice, column: int, row: int, half: int, z: int) -> None:
    colour = canvas.in_haze(dice.near(dice.choose(_SIGNS), 15), z)
    if dice.chance(50):
        canvas.ellipse(column, row, half, half, SIGN, colour, 4)
        bar = (column - half // 2, row - half // 6, column + half // 2, row + half // 6)
        canvas.rectangle(*bar, SIGN, (225, 225, 225), 4)
    else:
        canvas.rectangle(
            column - half, row - half * 3 // 4, column + half, row + half * 3 // 4, SIGN, colour, 4
        )


def _draw_light(canvas: Canvas, dice: Dice, column: int, row: int, half: int) -> None:
    canvas.rectangle(column - half, row, column + half, row + 5 * half, LIGHT, dice.near((40, 42, 40), 12), 4)
    lit = dice.between(0, 2)
    canvas.ellipse(
        column, row + half + lit * 3 * half // 2, half * 2 // 3, half * 2 // 3, LIGHT, _LAMPS[lit], 4
    )


def _draw_car(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    box = _Box(canvas, x, z, dice.between(165, 200), dice.between(135, 175))
    paint = canvas.in_haze(dice.any_colour(), z)
    box.shade(canvas)
    for left in (4, 76):
        canvas.rectangle(*box.part(left, 78, left + 20, 104), CAR, (28, 28, 30), 4)
    canvas.rectangle(*box.part(0, 42, 100, 88), CAR, paint, 6)
    canvas.polygon(box.corners((6, 44), (18, 0), (82, 0), (94, 44)), CAR, paint, 6)
    canvas.polygon(box.corners((13, 42), (22, 8), (78, 8), (87, 42)), CAR, canvas.in_haze(_GLASS, z), 10)
    lamp = (190, 40, 35) if x > 0 else (240, 235, 205)  # on our side of the road we see the car from behind
    for left in (4, 82):
        canvas.rectangle(*box.part(left, 50, left + 14, 62), CAR, canvas.in_haze(lamp, z), 4)


def _draw_truck(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    box = _Box(canvas, x, z, dice.between(240, 270), dice.between(290, 380))
    box.shade(canvas)
    canvas.rectangle(*box.part(5, 85, 95, 103), TRUCK, (35, 35, 38), 6)
    canvas.rectangle(*box.part(0, 0, 100, 78), TRUCK, canvas.in_haze(dice.any_colour(), z), 10)
    if x < 0:  # oncoming: we see the cabin
        canvas.rectangle(*box.part(6, 30, 94, 88), TRUCK, canvas.in_haze(dice.any_colour(), z), 6)
        canvas.rectangle(*box.part(12, 36, 88, 58), TRUCK, _GLASS, 8)
    else:
        canvas.rectangle(*box.part(48, 4, 52, 76), TRUCK, (60, 60, 60), 4)


def _draw_bus(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    box = _Box(canvas, x, z, dice.between(245, 270), dice.between(290, 340))
    box.shade(canvas)
    canvas.rectangle(*box.part(6, 88, 94, 103), BUS, (32, 32, 35), 4)
    canvas.rectangle(*box.part(0, 0, 100, 94), BUS, canvas.in_haze(dice.any_colour(), z), 6)
    canvas.rectangle(*box.part(6, 16, 94, 54), BUS, canvas.in_haze(_GLASS, z), 14)
    canvas.rectangle(*box.part(25, 4, 75, 12), BUS, (235, 170, 60), 4)  # the sign with the line's number


def _draw_train(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    """A tram: a long side along the street, with a row of windows."""
    length, height = dice.between(1200, 2600), dice.between(310, 350)
    paint = dice.any_colour()
    side = x - 120 if x > 0 else x + 120
    canvas.facade(side, z, z + length, height, TRAIN, paint, 8)
    canvas.openings(side, z, z + length, height, (220, 160), _GLASS)
    box = _Box(canvas, x, z, 240, height)
    box.shade(canvas)
    canvas.rectangle(*box.part(0, 0, 100, 98), TRAIN, canvas.in_haze(paint, z), 6)
    canvas.rectangle(*box.part(10, 14, 90, 48), TRAIN, canvas.in_haze(_GLASS, z), 10)
    canvas.rectangle(*box.part(42, 70, 58, 80), TRAIN, (240, 235, 205), 4)


def _draw_person(canvas: Canvas, dice: Dice, x: int, z: int, class_id: int = PERSON, lift: int = 0) -> None:
    box = _Box(canvas, x, z, dice.between(48, 66), dice.between(150, 190), lift)
    coat, trousers = canvas.in_haze(dice.any_colour(), z), canvas.in_haze(dice.any_colour(), z)
    if not lift:
        box.shade(canvas)
    for left in (18, 54):
        canvas.rectangle(*box.part(left, 52, left + 26, 100), class_id, trousers, 6)
    canvas.polygon(box.corners((2, 56), (16, 18), (84, 18), (98, 56)), class_id, coat, 10)
    canvas.ellipse(*box.oval(30, 0, 70, 18), class_id, canvas.in_haze(dice.choose(_SKINS), z), 4)


def _draw_bicycle(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    box = _Box(canvas, x, z, 165, 105)
    paint = _draw_wheels(canvas, dice, box, z, BICYCLE)
    canvas.polygon(box.corners((24, 34), (20, 26), (72, 26), (72, 34)), BICYCLE, paint, 4)
    canvas.polygon(box.corners((22, 34), (30, 34), (52, 76), (46, 76)), BICYCLE, paint, 4)
    _draw_rider(canvas, dice, x, z)


def _draw_motorcycle(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    box = _Box(canvas, x, z, 190, 115)
    paint = _draw_wheels(canvas, dice, box, z, MOTORCYCLE)
    canvas.polygon(box.corners((18, 80), (12, 34), (80, 22), (78, 80)), MOTORCYCLE, paint, 6)
    _draw_rider(canvas, dice, x, z)


def _draw_wheels(canvas: Canvas, dice: Dice, box: "_Box", z: int, class_id: int) -> Colour:
    box.shade(canvas)
    for left in (0, 62):
        canvas.ellipse(*box.oval(left, 40, left + 38, 100), class_id, (30, 30, 32), 4)
        canvas.ellipse(*box.oval(left + 8, 52, left + 30, 88), class_id, (120, 118, 115), 12)
    canvas.rectangle(*box.part(68, 4, 76, 40), class_id, (45, 45, 48), 4)
    return canvas.in_haze(dice.any_colour(), z)


def _draw_rider(canvas: Canvas, dice: Dice, x: int, z: int) -> None:
    if dice.chance(60):
        _draw_person(canvas, dice, x - 10, z, RIDER, lift=45)


class _Box:
    """An upright box of `width` x `height` centimetres, seen at (x, z). Its parts are given in percent of it."""

    def __init__(self, canvas: Canvas, x: int, z: int, width: int, height: int, lift: int = 0) -> None:
        self.left = canvas.x(x - width // 2, z)
        self.right = max(canvas.x(x + width // 2, z), self.left + 2)
        self.top = canvas.y(height + lift, z)
        self.bottom = max(canvas.y(lift, z), self.top + 2)

    def corners(self, *points: tuple[int, int]) -> list[tuple[int, int]]:
        wide, high = self.right - self.left, self.bottom - self.top
        return [(self.left + wide * x // 100, self.top + high * y // 100) for x, y in points]

    def part(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """The sides of a rectangle in pixels: left, top, right, bottom."""
        (x0, y0), (x1, y1) = self.corners((left, top), (right, bottom))
        return x0, y0, x1, y1

    def oval(self, left: int, top: int, right: int, bottom: int) -> tuple[int, int, int, int]:
        """Centre and half axes, in pixels, of the ellipse that fills a rectangle."""
        x0, y0, x1, y1 = self.part(left, top, right, bottom)
        return (x0 + x1) // 2, (y0 + y1) // 2, (x1 - x0) // 2, (y1 - y0) // 2

    def shade(self, canvas: Canvas) -> None:
        """Paint its shadow on the ground."""
        wide = self.right - self.left
        canvas.darken((self.left + self.right) // 2, self.bottom, wide * 6 // 10, max(wide // 8, 1), 60)
