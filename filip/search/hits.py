"""Find where the words of a text are in the hits of a search, and write the hits as one page."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.ndimage import label
from torch import Tensor

from filip.common.errors import UserError
from filip.common.files import replacing
from filip.eval.encoders import Encoder
from filip.explore.names import named_things, unknown_words
from filip.report.style import COLOURS, page
from filip.sets.image_set import read_image

SIDE = 480  # pixels of a picture's longer side


def write_hits(file: Path, answer: dict[str, Any]) -> None:
    """Write what `filip search json=true` prints. Boxes are drawn in a picture's own pixels, whatever its size here."""
    words = list(dict.fromkeys(word["word"] for hit in answer["hits"] for word in hit.get("words", ())))
    colours = {word: COLOURS[number % len(COLOURS)] for number, word in enumerate(words)}
    note = "<p>Point at a picture to see where each word fits it best, whether or not it is there.</p>" if words else ""
    shown = "".join(_figure(place, hit, colours) for place, hit in enumerate(answer["hits"], 1))
    title = f"{answer['text']} (among {answer['images']:,} pictures)"
    with replacing(file) as part:
        part.write_text(page(title, f'{note}<div class="hits">{shown}</div>'), encoding="utf-8")


def _figure(place: int, hit: dict[str, Any], colours: dict[str, str]) -> str:
    try:
        image = read_image(Path(hit["file"]))
    except UserError as error:
        return (
            f"<figure><figcaption>{place}. {html.escape(hit['path'])}: {html.escape(str(error))}</figcaption></figure>"
        )
    width, height = hit.get("size") or image.size
    image.thumbnail((SIDE, SIDE))
    stored = io.BytesIO()
    image.save(stored, "WEBP", quality=80)
    data = base64.b64encode(stored.getvalue()).decode("ascii")
    drawn, letters = "", max(width, height) / 22
    for word in hit.get("words", ()):
        left, top, right, bottom = word["box"]
        for colour, line in (("#ffffff", letters / 3), (colours[word["word"]], letters / 6)):
            drawn += (
                f'<rect x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" fill="none" '
                f'stroke="{colour}" stroke-width="{line:.1f}"/>'
            )
        drawn += (
            f'<text x="{left + letters / 3:.0f}" y="{min(top + letters * 1.2, height):.0f}" font-size="{letters:.1f}" '
            f'fill="{colours[word["word"]]}" stroke="#ffffff" stroke-width="{letters / 5:.1f}" paint-order="stroke">'
            f"{html.escape(word['word'])}</text>"
        )
    caption = f"{place}. {hit['path']}, {hit['score']:.3f}"
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(hit["path"])}">'
        f'<image href="data:image/webp;base64,{data}" width="{width}" height="{height}"/><g>{drawn}</g></svg>'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
    )


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
    corners = []
    for name in names:
        heat = (patches @ words[name["tokens"]].T).amax(1)
        heat[[n for n, (left, top, right, bottom) in enumerate(inside) if left >= right or top >= bottom]] = -1
        seen = heat[heat > -1]
        parts = label((heat >= (seen.max() + seen.mean()) / 2).view(rows, columns).cpu())[0].ravel()
        edges = torch.tensor(inside)[parts == parts[int(heat.argmax())]]
        (left, top), (right, bottom) = edges[:, :2].amin(0).tolist(), edges[:, 2:].amax(0).tolist()
        corners.append(Box(name["label"], (left, top, right, bottom), float(heat.max())))
    return corners


def cell_box(place: int, grid: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int, int, int]:
    """Return the pixels of one patch of a picture of ``size``: none if the patch is in a border."""
    (rows, columns), (width, height) = grid, size
    side = max(size) if fit == "pad" else min(size)
    left, top = (width - side) / 2, (height - side) / 2
    row, column = divmod(place, columns)
    edges = (left + column * side / columns, top + row * side / rows)
    ends = (left + (column + 1) * side / columns, top + (row + 1) * side / rows)
    return (max(round(edges[0]), 0), max(round(edges[1]), 0), min(round(ends[0]), width), min(round(ends[1]), height))
