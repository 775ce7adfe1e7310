"""Drawing word-patch alignment: one picture, and sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from filip.cli.command import MISSING, option
from filip.common.files import replacing
from filip.eval.word_patch import WordPatch

KINDS = ("alignment", "scenes")


@dataclass
class PictureOptions:
    """The options of every picture."""

    kind: str = option("alignment", "what is drawn; --help lists the options of each kind", choices=KINDS)
    out: str = option(MISSING, "the picture (PNG)", writes="file")


def save_png(page: Image.Image, file: str) -> None:
    """Write a page, atomically."""
    with replacing(file) as part:
        page.save(part, format="PNG")


INK, MUTED, RED = (34, 34, 40), (120, 120, 128), (214, 30, 44)
DIM, LINE = (38, 40, 52), (168, 172, 182)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans as matplotlib ships it: the same on every machine."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def draw_alignment(image: Image.Image, found: WordPatch, patch: int = 40) -> Image.Image:
    """Return the image with the index of the most similar token on each patch.

    Indices of label tokens are red on an opaque patch, others white on a dimmed one. patch: pixels a side.
    """
    rows, columns = found.grid
    size = (columns * patch, rows * patch)
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    dimmed = Image.blend(picture, Image.new("RGB", size, DIM), 0.68)
    opaque = Image.fromarray(np.kron(found.hits, np.full((patch, patch), 255)).astype(np.uint8))
    picture = Image.composite(picture, dimmed, opaque)
    draw = ImageDraw.Draw(picture)
    # lines along the patches, so that an opaque white patch does not run into the page
    for x in range(0, size[0] + patch, patch):
        draw.line([(min(x, size[0] - 1), 0), (min(x, size[0] - 1), size[1])], fill=LINE)
    for y in range(0, size[1] + patch, patch):
        draw.line([(0, min(y, size[1] - 1)), (size[0], min(y, size[1] - 1))], fill=LINE)
    number = font(max(9, int(patch * 0.42)), bold=True)
    for row in range(rows):
        for column in range(columns):
            hit = bool(found.hits[row, column])
            draw.text(
                ((column + 0.5) * patch, (row + 0.5) * patch),
                str(found.indices[row, column]),
                font=number,
                fill=RED if hit else "white",
                stroke_width=max(1, patch // 18) if hit else 0,
                stroke_fill="white",
                anchor="mm",
            )
    return picture


class SheetCell:
    """One picture of a sheet with a title above and coloured words below."""

    def __init__(self, picture: Image.Image, title: str, words: Sequence[tuple[str, tuple[int, int, int]]] = ()):
        self.picture, self.title, self.words = picture, title, list(words)

    def heading(self, width: int) -> list[str]:
        """Break the title into at most two lines of ``width`` pixels; what does not fit into them is cut off."""
        face = font(15, bold=True)
        lines = _wrap([(word, INK) for word in self.title.split()], face, width, " ")
        said = [" ".join(word for word, _ in line) for line in lines]
        return [_fit(line, face, width) for line in [*said[:1], " ".join(said[1:])] if line]

    def draw(self, width: int, heading_lines: int = 1) -> Image.Image:
        """Draw the cell at ``width`` pixels, as high as it needs, with room for ``heading_lines`` above the picture."""
        picture = self.picture
        if picture.width != width:
            height = round(picture.height * width / picture.width)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        heading, small = font(15, bold=True), font(13)
        lines = _wrap(self.words, small, width)
        titles = self.heading(width)
        top = 6 + 20 * max(heading_lines, len(titles))
        cell = Image.new("RGB", (width, top + picture.height + 6 + 19 * len(lines)), "white")
        draw = ImageDraw.Draw(cell)
        for number, title in enumerate(titles):
            draw.text((0, top - 3 - 20 * (len(titles) - number)), title, font=heading, fill=INK)
        cell.paste(picture, (0, top))
        for number, line in enumerate(lines):
            x = 0.0
            for word, colour in line:
                draw.text((x, top + picture.height + 6 + 19 * number), word, font=small, fill=colour)
                x += small.getlength(word + "  ")
        return cell


def sheet(
    cells: Sequence[SheetCell], columns: int, title: str, note: str = "", cell_width: int = 320, gap: int = 26
) -> Image.Image:
    """Lay out a page of cells, row by row, with a title and a line of explanation."""
    rows = []
    for start in range(0, len(cells), columns):
        chosen = cells[start : start + columns]
        lines = max(len(cell.heading(cell_width)) for cell in chosen)  # pictures in a row are on one line
        rows.append([cell.draw(cell_width, lines) for cell in chosen])
    width = columns * cell_width + (columns + 1) * gap
    note_lines = _wrap([(word, MUTED) for word in note.split()], font(14), width - 2 * gap, space=" ") if note else []
    top = 62 + 20 * len(note_lines)
    height = top + sum(max(c.height for c in row) + gap for row in rows)
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.text((gap, 18), title, font=font(22, bold=True), fill=INK)
    for number, line in enumerate(note_lines):
        text = " ".join(word for word, _ in line)
        draw.text((gap, 52 + 20 * number), text, font=font(14), fill=MUTED)
    y = top
    for row in rows:
        for number, cell in enumerate(row):
            page.paste(cell, (gap + number * (cell_width + gap), y))
        y += max(c.height for c in row) + gap
    return page


def _wrap(
    words: Sequence[tuple[str, tuple[int, int, int]]], face: ImageFont.FreeTypeFont, width: int, space: str = "  "
) -> list[list[tuple[str, tuple[int, int, int]]]]:
    lines: list[list[tuple[str, tuple[int, int, int]]]] = [[]]
    used = 0.0
    for word, colour in words:
        length = face.getlength(word + space)
        if lines[-1] and used + length > width:
            lines.append([])
            used = 0.0
        lines[-1].append((word, colour))
        used += length
    return [line for line in lines if line]


def _fit(text: str, face: ImageFont.FreeTypeFont, width: int) -> str:
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
