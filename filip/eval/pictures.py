"""Drawing word-patch alignment: one picture, heat maps of single words, and sheets of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from filip.eval.word_patch import WordPatch

__all__ = ["Cell", "alignment_cell", "draw_alignment", "draw_heat", "sheet"]

INK, MUTED, RED = (34, 34, 40), (120, 120, 128), (214, 30, 44)
DIM = (38, 40, 52)


@lru_cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def draw_alignment(image: Image.Image, found: WordPatch, patch: int = 40) -> Image.Image:
    """The image with the index of the most similar token on each patch.

    Indices of label tokens are red on an opaque patch, others white on a dimmed one. patch: pixels a side.
    """
    rows, columns = found.grid
    size = (columns * patch, rows * patch)
    picture = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    dimmed = Image.blend(picture, Image.new("RGB", size, DIM), 0.68)
    opaque = Image.fromarray(np.kron(found.hits, np.full((patch, patch), 255)).astype(np.uint8))
    picture = Image.composite(picture, dimmed, opaque)
    draw = ImageDraw.Draw(picture)
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


def draw_heat(image: Image.Image, heat: np.ndarray, low: float, high: float, patch: int = 40) -> Image.Image:
    """A heat map over a greyed image. heat: [rows, columns]; low, high: values of the ends of the scale."""
    rows, columns = heat.shape
    size = (columns * patch, rows * patch)
    share = np.clip((heat - low) / max(high - low, 1e-9), 0, 1)
    smooth = Image.fromarray((255 * share).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps["inferno"](np.asarray(smooth) / 255)[..., :3]
    warm = Image.fromarray((255 * colours).astype(np.uint8))
    grey = image.convert("L").convert("RGB").resize(size, Image.Resampling.LANCZOS)
    return Image.blend(grey, warm, 0.62)


class Cell:
    """One picture of a sheet with a title above and coloured words below."""

    def __init__(
        self, picture: Image.Image, title: str, words: Sequence[tuple[str, tuple[int, int, int]]] = ()
    ):
        self.picture, self.title, self.words = picture, title, list(words)

    def draw(self, width: int) -> Image.Image:
        """The cell at ``width`` pixels, as high as it needs."""
        picture = self.picture
        if picture.width != width:
            height = round(picture.height * width / picture.width)
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        heading, small = font(15, bold=True), font(13)
        lines = _wrap(self.words, small, width)
        title = _fit(self.title, heading, width)
        cell = Image.new("RGB", (width, 26 + picture.height + 6 + 19 * len(lines)), "white")
        draw = ImageDraw.Draw(cell)
        draw.text((0, 3), title, font=heading, fill=INK)
        cell.paste(picture, (0, 26))
        for number, line in enumerate(lines):
            x = 0.0
            for word, colour in line:
                draw.text((x, 26 + picture.height + 6 + 19 * number), word, font=small, fill=colour)
                x += small.getlength(word + "  ")
        return cell


def alignment_cell(image: Image.Image, found: WordPatch, title: str, width: int) -> Cell:
    """A cell with the alignment of one image and its tokens, numbered as on the patches."""
    patch = max(14, width // found.grid[1])
    words = [(f"{i} {t}", RED if i in found.label else MUTED) for i, t in enumerate(found.tokens)]
    return Cell(draw_alignment(image, found, patch), title, words)


def sheet(
    cells: Sequence[Cell], columns: int, title: str, note: str = "", cell_width: int = 320, gap: int = 26
) -> Image.Image:
    """A page of cells, row by row, with a title and a line of explanation."""
    drawn = [cell.draw(cell_width) for cell in cells]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    width = columns * cell_width + (columns + 1) * gap
    note_lines = (
        _wrap([(word, MUTED) for word in note.split()], font(14), width - 2 * gap, space=" ") if note else []
    )
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
    words: Sequence[tuple[str, tuple[int, int, int]]],
    face: ImageFont.FreeTypeFont,
    width: int,
    space: str = "  ",
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
