"""Compose scenes of one to four drawings on a background, with captions that name each drawing and the ground truth.

A scene is a function of (seed, index) and of the drawings it may show: the same arguments give the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from filip_demo.catalogue import Drawing, Emoji, hash_of
from filip_demo.render import OPAQUE, SIDE
from filip_demo.scene_captions import caption

GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
MAX_NAME_WORDS = 3
THINGS = {1: 0.2, 2: 0.25, 3: 0.3, 4: 0.25}  # share of the training scenes with so many things
SIZES = {1: (0.45, 0.9), 2: (0.38, 0.58), 3: (0.34, 0.5), 4: (0.3, 0.46)}  # longer side, as a share of the scene's
AVOIDING = 50  # attempts at a scene without a pair that another set shows
TRIES = 40  # places that are tried for a thing before it is drawn smaller
HELD_OUT_PAIRS = 0.1  # share of all pairs of concepts


@dataclass(frozen=True)
class Sprite:
    """A drawing cut out along its outermost visible pixels."""

    artist: str
    emoji: Emoji
    image: Image.Image  # RGBA


@dataclass(frozen=True)
class DrawnThing:
    """A thing in a scene. ``mask``: bool [side, side], its visible pixels; ``box``: left, top, right, bottom."""

    concept: str
    label: str
    artist: str
    box: tuple[int, int, int, int]
    mask: np.ndarray


@dataclass(frozen=True)
class Scene:
    index: int
    image: Image.Image  # RGB
    things: tuple[DrawnThing, ...]
    caption: str


# The drawings that scenes may show, by concept.
Sprites = Mapping[str, Sequence[Sprite]]


def in_scenes(emoji: Emoji) -> bool:
    """Return whether scenes may show it: it has a short name for one thing, and is not one of 24 clock faces."""
    words = emoji.label.split()
    clock = emoji.label.endswith(("o’clock", "-thirty"))
    return emoji.group in GROUPS and len(words) <= MAX_NAME_WORDS and "and" not in words and not clock


def load_sprites(drawings: Iterable[Drawing], folder: Path) -> dict[str, list[Sprite]]:
    """Load the sprites at ``folder/<artist>/<slug>.png`` by concept, without drawings that have no visible pixel."""
    sprites: dict[str, list[Sprite]] = {}
    for drawing in drawings:
        file = folder / drawing.artist / f"{drawing.slug}.png"
        if file.stat().st_size:
            image = Image.open(file).convert("RGBA")
            sprites.setdefault(drawing.emoji.concept, []).append(Sprite(drawing.artist, drawing.emoji, image))
    return sprites


def pair_is_held_out(first: str, second: str, share: float = HELD_OUT_PAIRS) -> bool:
    """Return whether two concepts are never shown together in training: a ``share`` of all pairs, by hash."""
    low, high = sorted((first, second))
    return int(hash_of(f"pair {low} {high}")[:8], 16) < share * 2**32


def pair_share(concepts: int) -> float:
    """Return the share of held-out pairs: larger in a reduced corpus, so that there are test scenes of three."""
    return HELD_OUT_PAIRS if concepts >= 200 else 0.3


def training_concepts(draw: random.Random, concepts: Sequence[str], count: int, share: float) -> list[str]:
    """Draw ``count`` different concepts of which no pair is held out (fewer if there are not enough)."""
    for _ in range(200):
        chosen = draw.sample(concepts, min(count, len(concepts)))
        if not any(pair_is_held_out(a, b, share) for a, b in combinations(chosen, 2)):
            return chosen
    return draw.sample(concepts, 1)


def new_concepts(draw: random.Random, concepts: Sequence[str], count: int, share: float) -> list[str]:
    """Draw ``count`` different concepts of which every pair is held out (fewer if need be, at least two)."""
    best: list[str] = []
    for _ in range(200):
        chosen = [draw.choice(concepts)]
        partners = list(concepts)
        while len(chosen) < count:
            partners = [c for c in partners if c not in chosen and pair_is_held_out(c, chosen[-1], share)]
            if not partners:
                break
            chosen.append(draw.choice(partners))
        if len(chosen) == count:
            return chosen
        best = max(best, chosen, key=len)
    return best


def compose(sprites: Sprites, concepts: Sequence[str], seed: int, index: int, side: int = SIDE) -> Scene:
    """Compose scene number ``index``, which shows ``concepts``, each drawn by one of the artists in ``sprites``."""
    draw = random.Random(f"scene {seed} {index}")
    page = background(draw, side)
    chosen = [draw.choice(sprites[concept]) for concept in concepts]
    placed = place(draw, [sprite.image.size for sprite in chosen], side)
    masks: list[np.ndarray] = []
    for sprite, (left, top, right, bottom) in zip(chosen, placed, strict=True):
        drawn = sprite.image.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        page.paste(drawn, (left, top), drawn)
        mask = np.zeros((side, side), bool)
        mask[top:bottom, left:right] = np.asarray(drawn.getchannel("A")) >= OPAQUE
        for below in masks:
            below &= ~mask
        masks.append(mask)
    things = tuple(
        DrawnThing(sprite.emoji.concept, sprite.emoji.label, sprite.artist, box, mask)
        for sprite, box, mask in zip(chosen, placed, masks, strict=True)
    )
    return Scene(index, page, things, caption(draw, things))


def place(draw: random.Random, shapes: Sequence[tuple[int, int]], side: int) -> list[tuple[int, int, int, int]]:
    """Return boxes of these shapes that do not overlap; a thing that finds no place is drawn smaller."""
    small, large = SIZES[len(shapes)]
    boxes: list[tuple[int, int, int, int]] = []
    for width, height in shapes:
        longer = draw.uniform(small, large) * side
        while True:
            scale = longer / max(width, height)
            w, h = max(1, round(width * scale)), max(1, round(height * scale))
            corner = _free_place(draw, w, h, boxes, side)
            if corner:
                boxes.append(corner)
                break
            longer *= 0.9
    return boxes


def _free_place(
    draw: random.Random, width: int, height: int, taken: list[tuple[int, int, int, int]], side: int
) -> tuple[int, int, int, int] | None:
    for _ in range(TRIES):
        left, top = draw.randint(0, side - width), draw.randint(0, side - height)
        right, bottom = left + width, top + height
        if all(right <= l or r <= left or bottom <= t or b <= top for l, t, r, b in taken):  # noqa: E741
            return left, top, right, bottom
    return None


def background(draw: random.Random, side: int) -> Image.Image:
    """Draw a plain colour, a gradient, stripes, dots, checks or soft noise."""
    kind = draw.choice(["plain", "plain", "gradient", "gradient", "stripes", "dots", "checks", "noise"])
    first, second = _colours(draw)
    if kind == "plain":
        return Image.new("RGB", (side, side), first)
    if kind == "gradient":
        corners = np.array([first, draw.choice([first, second]), draw.choice([first, second]), second])
        return _smooth(corners.reshape(2, 2, 3), side)
    if kind == "noise":
        share = np.array([[draw.random() for _ in range(6)] for _ in range(6)])[..., None]
        return _smooth(share * np.array(first) + (1 - share) * np.array(second), side)
    page = Image.new("RGB", (side, side), first)
    pencil = ImageDraw.Draw(page)
    step = draw.randint(side // 12, side // 4)
    if kind == "dots":
        radius = step * draw.uniform(0.15, 0.35)
        for x in range(step // 2, side, step):
            for y in range(step // 2, side, step):
                pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill=second)
    elif kind == "checks":
        for column, x in enumerate(range(0, side, step)):
            for y in range(step * (column % 2), side, 2 * step):
                pencil.rectangle((x, y, x + step - 1, y + step - 1), fill=second)
    else:
        upright = draw.random() < 0.5
        for x in range(0, side, 2 * step):
            stripe = (x, 0, x + step - 1, side) if upright else (0, x, side, x + step - 1)
            pencil.rectangle(stripe, fill=second)
    return page


def _colours(draw: random.Random) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Draw two colours of similar brightness, mostly pale, so that drawings made for white pages stay visible."""
    bright = draw.random() < 0.8
    low, high = (170, 256) if bright else (20, 150)
    first = (draw.randrange(low, high), draw.randrange(low, high), draw.randrange(low, high))
    red, green, blue = (min(255, max(0, value + draw.randint(-50, 50))) for value in first)
    return first, (red, green, blue)


def _smooth(values: np.ndarray, side: int) -> Image.Image:
    small = Image.fromarray(values.round().astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


def training_scene(sprites: Sprites, concepts: Sequence[str], seed: int, index: int, side: int = SIDE) -> Scene:
    """Compose training scene number ``index``: one to four things, no two of which are a held-out pair."""
    draw = random.Random(f"training scene {seed} {index}")
    count = draw.choices(list(THINGS), list(THINGS.values()))[0]
    chosen = training_concepts(draw, concepts, count, pair_share(len(concepts)))
    return compose(sprites, chosen, seed, index, side)


def new_scene(
    sprites: Sprites,
    concepts: Sequence[str],
    seed: int,
    index: int,
    side: int = SIDE,
    unseen: Sequence[str] = (),
    avoided: frozenset[frozenset[str]] = frozenset(),
) -> Scene:
    """Compose the test scene number ``index``: three things, every two of which are a held-out pair.

    unseen: concepts that were never trained on, one of which then replaces the third. avoided: pairs that
    other scenes show and this one does not (in a corpus of few concepts it may have to).
    """
    chosen = test_concepts(concepts, seed, index, unseen)
    for attempt in range(1, AVOIDING if avoided else 0):
        if avoided.isdisjoint(pairs_of(chosen)):
            break
        chosen = test_concepts(concepts, seed, index, unseen, attempt)
    return compose(sprites, chosen, seed, index, side)


def test_concepts(
    concepts: Sequence[str], seed: int, index: int, unseen: Sequence[str] = (), attempt: int = 0
) -> list[str]:
    """Choose the things of test scene number ``index``; another ``attempt`` gives another choice."""
    draw = random.Random(f"test scene {seed} {index}{f' {attempt}' if attempt else ''}")
    chosen = new_concepts(draw, concepts, 2 if unseen else 3, pair_share(len(concepts)))
    if unseen:
        chosen.insert(draw.randrange(3), draw.choice(unseen))
    return chosen


def pairs_of(concepts: Iterable[str]) -> set[frozenset[str]]:
    """Return all pairs of the concepts of a scene."""
    return {frozenset(pair) for pair in combinations(concepts, 2)}
