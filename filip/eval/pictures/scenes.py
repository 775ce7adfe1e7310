"""Scenes as several models see them: ``filip eval picture kind=scenes models=[clip.safetensors,filip.safetensors]
labels=[CLIP,FILIP] root=DIR card=demo_pointing out=scenes.png``.

Each thing's name has a colour. As in the explorer, an outline is around the patches on which a name stands out, and a
dot is on the patch that it points at, the most similar one; a ring if it does not stand out there. Scenes are not
hand-picked: a seed draws them. Names are counted as in the tables.
"""

from __future__ import annotations

import base64
import io
import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from filip.cli.command import MISSING, option
from filip.common.errors import UserError
from filip.common.files import write_json
from filip.eval.cards import load_card
from filip.eval.datasets import Sample
from filip.eval.encoders import load_encoder
from filip.eval.formats import open_set
from filip.eval.pictures.drawing import INK, PictureOptions, SheetCell, save_png, sheet
from filip.eval.pointing import PointedScene, point, pointed_scenes

Colour = tuple[int, int, int]
# colours that everybody can distinguish
COLOURS: tuple[Colour, ...] = ((213, 94, 0), (0, 114, 178), (0, 140, 90), (170, 60, 150))
DOT = 7  # radius of a dot in pixels
PATCH = 48  # side of a patch in pixels, before the picture is fitted into its cell
CELL = 288  # pixels
WIDE = 640  # pixels of a picture of a page
STANDS_OUT = 1.25  # standard deviations above the mean of a scene's patches at which a patch is a name's
NOTE = (
    "One colour per name. Outline: the patches on which the name stands out, by {stands_out} standard deviations over "
    "the patches. Dot: the patch that the name is most similar to; a ring if it stands out nowhere. Seed {seed} drew "
    "these of {count:,} scenes. A name counts as in the tables: its patch belongs to what covers most of it."
)


@dataclass
class SceneSheet(PictureOptions):
    models: list[str] = option(MISSING, "one or more .safetensors files of ours, left to right")
    labels: list[str] = option(MISSING, "their names, one each")
    root: str = option(MISSING, "folder below which the test sets lie")
    card: str = option("demo_pointing", "pointing card whose scenes are shown")
    parts: str | None = option(
        None, "its parts and the rule as JSON, for pages; pictures are WebP inside; null = none", writes="file"
    )
    count: int = option(12, "scenes", at_least=1)
    shown: int = option(3, "scenes of these on the picture; parts= has all", at_least=1)
    seed: int = option(0, "which scenes", at_least=0)
    measure: int = option(1000, "scenes to draw from, the first of the set", at_least=1)
    title: str = option("Where each name is seen", "title of the sheet")
    device: str = option("auto", "torch device; auto = a GPU where there is one")


def draw(config: SceneSheet) -> None:
    """Draw scenes of a seed, as every model sees them, side by side."""
    if len(config.labels) != len(config.models):
        raise UserError(f"{len(config.labels)} labels for {len(config.models)} models: give one each")
    card = load_card(config.card)
    if card.kind != "pointing":
        raise UserError(f"card={config.card} is for {card.kind}: a pointing card says where things are")
    data = open_set(card, config.root)
    encoders = [load_encoder(model, None, config.device) for model in config.models]
    pointed = list(pointed_scenes(encoders[-1], card, data, config.measure))
    whole = [scene for scene in pointed if len(scene.counted) == len(scene.names)]
    if len(whole) < config.count:
        raise UserError(f"{len(whole)} scenes can be pointed at, fewer than count={config.count}")
    cells: list[SheetCell] = []
    parts: list[dict[str, Any]] = []
    for scene in random.Random(config.seed).sample(whole, config.count):
        by_model = [*(point(encoder, [scene.sample])[0] for encoder in encoders[:-1]), scene]
        picture = _enlarged(scene.sample, _size(scene))
        caption = coloured_caption(scene.sample)
        cells.append(SheetCell(picture, "", caption))
        seen_by = []
        for label, seen in zip(config.labels, by_model, strict=True):
            right = {"right": sum(seen.right), "names": len(seen.names)}
            cells.append(SheetCell(marked(seen), "{}: {right} of {names} names".format(label, **right)))
            stored, shown = io.BytesIO(), cells[-1].picture
            wide = shown.resize((WIDE, round(WIDE * shown.height / shown.width)), Image.Resampling.LANCZOS)
            wide.save(stored, format="WEBP", quality=82)
            seen_by.append({"label": label, **right, "picture": base64.b64encode(stored.getvalue()).decode("ascii")})
        words = [{"word": word, "colour": None if c == INK else list(c)} for word, c in caption]
        parts.append({"caption": words, "models": seen_by})
    note = NOTE.format(stands_out=STANDS_OUT, count=len(whole), seed=config.seed)
    totals = [
        {"label": label, **{key: sum(scene["models"][n][key] for scene in parts) for key in ("right", "names")}}
        for n, label in enumerate(config.labels)
    ]
    said = ", ".join("{label} {right} of {names}".format(**total) for total in totals)
    columns, about = 1 + len(encoders), f"Right in {config.count} scenes: {said}. {note}"
    page = sheet(cells[: columns * config.shown], columns, config.title, about, cell_width=CELL, gap=18)
    save_png(page, config.out)
    if config.parts is not None:
        write_json(config.parts, {"title": config.title, "rule": note, "totals": totals, "scenes": parts})


# ---- drawing -------------------------------------------------------------------------------------------


def marked(scene: PointedScene) -> Image.Image:
    """Draw the scene in its colours, with outlines, dots and rings."""
    page = _enlarged(scene.sample, _size(scene))
    owner = standing_out(scene)
    for n in range(len(scene.names)):
        large = np.kron(owner == n, np.full((PATCH, PATCH), 255)).astype(np.uint8)
        mask = ImageOps.expand(Image.fromarray(large), PATCH)  # so that the picture's edge is an edge
        halo = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(13)))
        inner = mask.filter(ImageFilter.MinFilter(5))
        line = ImageChops.subtract(inner, inner.filter(ImageFilter.MinFilter(7)))
        page.paste("white", mask=ImageOps.crop(halo, PATCH))
        page.paste(_colour(n), mask=ImageOps.crop(line, PATCH))
    pencil = ImageDraw.Draw(page)
    taken: dict[tuple[int, int], int] = {}
    for n, (row, column) in enumerate(scene.best):
        beside = taken.get((row, column), 0)  # names that point at one patch: dots next to each other
        taken[row, column] = beside + 1
        centre = ((column + 0.5) * PATCH + beside * 11, (row + 0.5) * PATCH)
        pencil.circle(centre, 9, fill="white")
        pencil.circle(centre, DOT, fill=_colour(n))
        if owner[row, column] < 0:
            pencil.circle(centre, 4, fill="white")
    return page


def standing_out(scene: PointedScene) -> np.ndarray:
    """Return for each patch the name that stands out most on it, or -1 if none does; [rows, columns].

    A name's similarity is standardised over the patches, since some words are similar to every patch.
    """
    heats = np.stack([scene.alignment.heat(tokens) for tokens in scene.names])
    spread = heats.std((1, 2), keepdims=True)
    standard = (heats - heats.mean((1, 2), keepdims=True)) / np.maximum(spread, 1e-9)
    return np.where(standard.max(0) >= STANDS_OUT, standard.argmax(0), -1)


def coloured_caption(sample: Sample) -> list[tuple[str, Colour]]:
    """Return the words of the caption; names in their colours."""
    caption = sample.captions[0]
    colour_at: dict[int, Colour] = {}
    for n in sorted(range(len(sample.things)), key=lambda n: len(sample.things[n].label)):
        for match in re.finditer(rf"(?<!\w){re.escape(sample.things[n].label)}(?!\w)", caption):
            colour_at |= dict.fromkeys(range(*match.span()), _colour(n))
    return [(m.group(), colour_at.get(m.start(), INK)) for m in re.finditer(r"\S+", caption)]


def _size(scene: PointedScene) -> tuple[int, int]:
    rows, columns = scene.alignment.grid
    return columns * PATCH, rows * PATCH


def _colour(name: int) -> Colour:
    return COLOURS[name % len(COLOURS)]


def _enlarged(sample: Sample, size: tuple[int, int]) -> Image.Image:
    # The models are ours, which see the centre of a picture that is not square.
    return ImageOps.fit(sample.image.convert("RGB"), size, Image.Resampling.LANCZOS)
