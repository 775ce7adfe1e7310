"""Outline the masks of a picture's things as paths that a page draws."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise

import numpy as np
from PIL import Image

from filip.sets.image_set import middle_square

SIDE = 64  # cells of a mask's grid; a path counts half cells (OUTLINE_SIDE in assets/pictures.js)

Point = tuple[int, int]


def outlines(masks: Iterable[tuple[str, Image.Image]]) -> dict[str, str]:
    """Return the outline of each thing in the middle square of its picture, as an SVG path, by the thing's name.

    masks: names and masks (mode L, 0 or 255). Things that have the same name share a path.
    """
    paths: dict[str, str] = {}
    for name, mask in masks:
        cells = middle_square(mask).resize((SIDE, SIDE), Image.Resampling.BOX)
        path = "".join(_path(loop) for loop in _loops(np.asarray(cells) >= 128))
        if path:
            paths[name] = paths.get(name, "") + path
    return paths


def _loops(inside: np.ndarray) -> Iterator[list[Point]]:
    """Yield the closed lines between cells inside and outside: corners (x, y), clockwise around the inside."""
    padded = np.pad(inside, 1)
    ways: dict[Point, list[Point]] = {}
    # the neighbour of a cell that is outside, and the corners at which the edge towards it begins and ends
    for (down, right), (x, y), (to_x, to_y) in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        outside = ~np.roll(padded, (-down, -right), (0, 1))[1:-1, 1:-1]
        for row, column in np.argwhere(inside & outside).tolist():
            ways.setdefault((column + x, row + y), []).append((column + to_x, row + to_y))
    while ways:
        # as many edges end at a corner as begin there, so that a walk ends where it began
        loop = [next(iter(ways))]
        while loop[-1] in ways:
            corner = loop[-1]
            loop.append(ways[corner].pop())
            if not ways[corner]:
                del ways[corner]
        yield loop


def _path(loop: list[Point]) -> str:
    """Return the path through the middles of a closed line's edges, which cuts its corners, in half cells."""
    middles = [(x + to_x, y + to_y) for (x, y), (to_x, to_y) in pairwise(loop)]
    steps = [(to_x - x, to_y - y) for (x, y), (to_x, to_y) in pairwise(middles)]
    straight = [(step, len(list(same))) for step, same in groupby(steps)]
    lines = " ".join(f"{x * count} {y * count}" for (x, y), count in straight)
    return "M{} {}l{}z".format(*middles[0], lines.replace(" -", "-"))
