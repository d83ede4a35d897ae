# SPDX-FileCopyrightText: The rlvlm_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Images of the bundled problems: one function per family, from the facts to a PNG.

Labels use built-in glyphs, 5 by 7 points doubled, so that images do not depend on a font file. Each
glyph fills one 14-pixel patch of the vision tower; this lets a model of two million parameters
learn to read. Figures are not to scale. This file knows nothing of questions, answers or splits.
"""

import io
from collections.abc import Sequence
from random import Random
from typing import TypeVar

from PIL import Image, ImageDraw

SIZE = 84  # pixels per side: 6 x 6 patches, 3 x 3 image tokens
CELL = 14  # pixels per side of a patch, and of the cell of one glyph

BLACK = (0, 0, 0)
WHITE = (255, 255, 255)
GREY = (200, 200, 200)
COLOURS = (  # of figures in every split except the out-of-distribution test
    (220, 40, 40),
    (40, 80, 220),
    (20, 140, 60),
    (230, 130, 20),
)
UNSEEN_COLOURS = ((130, 50, 170), (20, 150, 160))  # of the out-of-distribution test only

_GLYPHS = {
    "0": "01110 10001 10011 10101 11001 10001 01110",
    "1": "00100 01100 00100 00100 00100 00100 01110",
    "2": "01110 10001 00001 00110 01000 10000 11111",
    "3": "11110 00001 00001 01110 00001 00001 11110",
    "4": "00010 00110 01010 10010 11111 00010 00010",
    "5": "11111 10000 11110 00001 00001 10001 01110",
    "6": "01110 10000 10000 11110 10001 10001 01110",
    "7": "11111 00001 00010 00100 01000 01000 01000",
    "8": "01110 10001 10001 01110 10001 10001 01110",
    "9": "01110 10001 10001 01111 00001 00001 01110",
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "+": "00000 00100 00100 11111 00100 00100 00000",
    "?": "01110 10001 00001 00110 00100 00000 00100",
}

Item = TypeVar("Item")
Colour = tuple[int, int, int]


def pick(rng: Random, items: Sequence[Item]) -> Item:
    """Draws one item from `rng.random`: the only stream that Python promises never to change."""
    return items[int(rng.random() * len(items))]


def draw_rectangle(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws a rectangle with a square hole; labels: width above, height on the left, hole inside.

    Args:
        facts: width, height and area of the hole, one digit each.
        labels: whether to write the facts into the image.
        rng: source of variation that leaves the facts unchanged.
        colour: of the rectangle.

    Returns:
        The PNG file of an RGB image of SIZE x SIZE pixels.
    """
    image, pen = _canvas()
    left, top, right, bottom = 16 + _jitter(rng), 16 + _jitter(rng), 80 - _jitter(rng), 80
    bottom -= _jitter(rng)
    fill = pick(rng, (colour, None))
    pen.rectangle((left, top, right, bottom), fill=fill, outline=BLACK if fill else colour, width=2)
    pen.rectangle((40, 40, 57, 57), fill=WHITE, outline=BLACK)
    if labels:
        width, height, hole = facts
        _write(pen, str(width), column=3, row=0)
        _write(pen, str(height), column=0, row=3)
        _write(pen, str(hole), column=3, row=3)
    return _png(image)


def draw_triangle_sides(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws a triangle; labels: the left, right and lower side. See `draw_rectangle`."""
    image, pen = _canvas()
    _triangle(pen, rng, colour)
    if labels:
        left, right, lower = (str(side) for side in facts)
        _write(pen, left, column=0, row=1)
        _write(pen, right, column=6 - len(right), row=1)
        _write(pen, lower, column=2, row=5)
    return _png(image)


def draw_triangle_angles(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws a triangle; labels: its two lower angles, in degrees. See `draw_rectangle`."""
    image, pen = _canvas()
    _triangle(pen, rng, colour)
    if labels:
        left, right = (str(angle) for angle in facts)
        _write(pen, "?", column=2, row=0)
        _write(pen, left, column=0, row=5)
        _write(pen, right, column=6 - len(right), row=5)
    return _png(image)


def draw_bars(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws three bars over their letters; without labels, the letters stay but not the scale.

    Facts: the heights of A, B and C, 1 to 9 units of 7 pixels. See `draw_rectangle`.
    """
    image, pen = _canvas()
    for index, height in enumerate(facts):
        left, top = CELL * (2 * index + 1), 70 - 7 * height
        pen.rectangle((left + 1, top, left + CELL - 2, 69), fill=colour)
        _write(pen, "ABC"[index], column=2 * index + 1, row=5)
    pen.line((0, 70, SIZE - 1, 70), fill=BLACK)
    if labels:
        for height in range(1, 10):
            pen.line((6, 70 - 7 * height, 10, 70 - 7 * height), fill=BLACK)
    pen.line((10, 4, 10, 70), fill=BLACK)
    return _png(image)


def draw_number_line(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws a number line with a point; labels: the first number, and the step above its arrow.

    Facts: first number, step, and how many steps away the point is, 1 to 9. See `draw_rectangle`.
    """
    image, pen = _canvas()
    start, step, steps = facts
    for tick in range(10):
        pen.line((4 + 8 * tick, 44, 4 + 8 * tick, 52), fill=BLACK)
    pen.line((0, 48, SIZE - 1, 48), fill=BLACK)
    x = 4 + 8 * steps
    pen.ellipse((x - 4, 44, x + 4, 52), fill=colour)
    if labels:
        _write(pen, f"+{step}", column=0, row=1)
        _write(pen, str(start), column=0, row=4)
    return _png(image)


def draw_grid(facts: Sequence[int], labels: bool, rng: Random, colour: Colour) -> bytes:
    """Draws a grid with dark cells; without labels, the empty grid. See `draw_rectangle`.

    Facts: rows and columns, 2 to 6 each, and how many cells are dark.
    """
    image, pen = _canvas()
    rows, columns, dark = facts
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    for row, column in cells:
        _cell(pen, row, column, GREY)
    if labels:
        for _ in range(dark):
            row, column = cells.pop(int(rng.random() * len(cells)))
            _cell(pen, row, column, colour)
    return _png(image)


def _canvas() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (SIZE, SIZE), WHITE)
    return image, ImageDraw.Draw(image)


def _jitter(rng: Random) -> int:
    return int(rng.random() * 5)


def _triangle(pen: ImageDraw.ImageDraw, rng: Random, colour: Colour) -> None:
    """Draws a triangle row by row, because Pillow's slanted edges differ between its versions."""
    left, right, peak = 16 + _jitter(rng), 68 - _jitter(rng), 36 + 3 * _jitter(rng)
    top, bottom = 16 + _jitter(rng), 64 + _jitter(rng)
    filled = rng.random() < 0.5
    for y in range(top, bottom + 1):
        start = peak + (left - peak) * (y - top) // (bottom - top)
        end = peak + (right - peak) * (y - top) // (bottom - top)
        pen.line((start, y, end, y), fill=colour)
        if not filled and y <= bottom - 3 and end - start > 6:
            pen.line((start + 3, y, end - 3, y), fill=WHITE)


def _cell(pen: ImageDraw.ImageDraw, row: int, column: int, colour: Colour) -> None:
    x, y = column * CELL, row * CELL
    pen.rectangle((x + 1, y + 1, x + CELL - 2, y + CELL - 2), fill=colour, outline=BLACK)


def _write(pen: ImageDraw.ImageDraw, text: str, column: int, row: int) -> None:
    """Writes the text in black, one glyph per cell, rightwards from a cell of the 6 x 6 grid."""
    for index, letter in enumerate(text):
        left, top = (column + index) * CELL + 2, row * CELL
        for y, line in enumerate(_GLYPHS[letter].split()):
            for x, point in enumerate(line):
                if point == "1":
                    corner = (left + 2 * x, top + 2 * y)
                    pen.rectangle((*corner, corner[0] + 1, corner[1] + 1), fill=BLACK)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
