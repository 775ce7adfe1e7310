"""Find where the words of a text are in a picture: boxes in the picture's own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from filip.eval.encoders import Encoder
from filip.explore.names import named_things, unknown_words


@dataclass(frozen=True)
class Box:
    """A word, and the part of the picture that it fits best. box: left, top, right, bottom in pixels, upright."""

    word: str
    box: tuple[int, int, int, int]
    cosine: float


def boxes(encoder: Encoder, text: str, tokens: Tensor, size: tuple[int, int], fit: str) -> list[Box]:
    """Return a box for each word of a text that names something.

    tokens: a picture's, [n1, d]. size: its width and height. fit: how the model saw it, "crop" or "pad".
    A word's box is around its best patch and the patches connected to that one that are closer to it than to the
    picture's mean.
    """
    rows, columns = encoder.grid
    unknown = [word["tokens"] for word in unknown_words(encoder, text)]
    names = [name for name in named_things(encoder, text) if name["tokens"] not in unknown]
    words = encoder.words([text])[0]
    patches = tokens[len(tokens) - rows * columns :]
    inside = [cell_box(place, encoder.grid, size, fit) for place in range(rows * columns)]
    found = []
    for name in names:
        heat = (patches @ words[name["tokens"]].T).amax(1)
        heat[[n for n, (left, top, right, bottom) in enumerate(inside) if left >= right or top >= bottom]] = -1
        seen = heat[heat > -1]
        part = connected(heat >= (seen.max() + seen.mean()) / 2, int(heat.argmax()), columns)
        cells = [inside[n] for n in part]
        found.append(Box(name["label"], around(cells), float(heat.max())))
    return found


def cell_box(place: int, grid: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int, int, int]:
    """Return the pixels of one patch of a picture of ``size``: none if the patch lies in a border."""
    (rows, columns), (width, height) = grid, size
    side = max(size) if fit == "pad" else min(size)
    left, top = (width - side) / 2, (height - side) / 2
    row, column = divmod(place, columns)
    edges = (left + column * side / columns, top + row * side / rows)
    ends = (left + (column + 1) * side / columns, top + (row + 1) * side / rows)
    return (max(round(edges[0]), 0), max(round(edges[1]), 0), min(round(ends[0]), width), min(round(ends[1]), height))


def connected(mask: Tensor, start: int, columns: int) -> list[int]:
    """Return the cells of ``mask`` (bool [rows * columns]) that are set and connected to ``start`` by their sides."""
    wanted, found, ahead = set(mask.nonzero()[:, 0].tolist()), {start}, [start]
    while ahead:
        place = ahead.pop()
        near = [place - columns, place + columns]
        near += [place - 1] if place % columns else []
        near += [place + 1] if (place + 1) % columns else []
        new = [n for n in near if n in wanted and n not in found]
        found.update(new)
        ahead += new
    return sorted(found)


def around(cells: Sequence[tuple[int, int, int, int]]) -> tuple[int, int, int, int]:
    """Return the box around all of them."""
    edges = torch.tensor(cells)
    (left, top), (right, bottom) = edges[:, :2].amin(0).tolist(), edges[:, 2:].amax(0).tolist()
    return left, top, right, bottom
