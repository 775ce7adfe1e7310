"""Scenes of one to four drawings on a background, with captions that name each of them and the truth about each.

A scene is a function of (seed, index) and of the drawings it may show: the same arguments give the same pixels.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from multiprocessing import get_context

import numpy as np
from PIL import Image, ImageDraw

from filip.data.demo.catalogue import Drawing, Emoji, hash_of

SCENE_SIDE = 96  # pixels
GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
MAX_NAME_WORDS = 3
THINGS = {1: 0.2, 2: 0.25, 3: 0.3, 4: 0.25}  # share of the training scenes with so many things
SIZES = {
    1: (0.45, 0.9),
    2: (0.38, 0.58),
    3: (0.34, 0.5),
    4: (0.3, 0.46),
}  # longer side, in sides of the scene
TRIES = 40  # places tried for a thing before it is drawn smaller
OPAQUE = 128  # alpha from which a pixel belongs to the thing
HELD_OUT_PAIRS = 0.1  # of all pairs of concepts


@dataclass(frozen=True)
class Sprite:
    """A drawing cut out along its outermost visible pixels."""

    artist: str
    emoji: Emoji
    image: Image.Image  # RGBA

    @property
    def label(self) -> str:
        return self.emoji.label


@dataclass(frozen=True)
class Thing:
    """One thing of a scene. ``mask``: bool [side, side], its visible pixels; ``box``: left, top, right, bottom."""

    concept: str
    label: str
    artist: str
    box: tuple[int, int, int, int]
    mask: np.ndarray

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    index: int
    image: Image.Image  # RGB
    things: tuple[Thing, ...]
    caption: str


# The drawings that scenes may show, by concept.
Sprites = Mapping[str, Sequence[Sprite]]


def in_scenes(emoji: Emoji) -> bool:
    """Things with short names. No clock faces (24 that differ by their hands), no name that reads like two."""
    words = emoji.label.split()
    clock = emoji.label.endswith(("o’clock", "-thirty"))
    return emoji.group in GROUPS and len(words) <= MAX_NAME_WORDS and "and" not in words and not clock


def cut_out(drawing: Drawing, rendered: Image.Image) -> Sprite | None:
    """The sprite of a rendered drawing (RGBA); None if nothing of it is visible."""
    box = rendered.getchannel("A").point(lambda alpha: 255 if alpha >= OPAQUE else 0).getbbox()
    return Sprite(drawing.artist, drawing.emoji, rendered.crop(box)) if box else None


def pair_is_held_out(first: str, second: str, share: float = HELD_OUT_PAIRS) -> bool:
    """Whether two concepts are never shown together in training: a ``share`` of all pairs, by hash."""
    low, high = sorted((first, second))
    return int(hash_of(f"pair {low} {high}")[:8], 16) < share * 2**32


def pair_share(concepts: int) -> float:
    """A reduced corpus holds out more of its few pairs, so that there are scenes of three to test on."""
    return HELD_OUT_PAIRS if concepts >= 200 else 0.3


def training_concepts(draw: random.Random, concepts: Sequence[str], count: int, share: float) -> list[str]:
    """``count`` different concepts of which no pair is held out (fewer if there are no such)."""
    for _ in range(200):
        chosen = draw.sample(concepts, min(count, len(concepts)))
        if not any(pair_is_held_out(a, b, share) for a, b in combinations(chosen, 2)):
            return chosen
    return draw.sample(concepts, 1)


def new_concepts(draw: random.Random, concepts: Sequence[str], count: int, share: float) -> list[str]:
    """``count`` different concepts of which every pair is held out (as many as there are, at least two)."""
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


def compose(
    sprites: Sprites, concepts: Sequence[str], seed: int, index: int, side: int = SCENE_SIDE
) -> Scene:
    """The scene number ``index`` that shows ``concepts``, each drawn by one of the artists in ``sprites``."""
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
        Thing(sprite.emoji.concept, sprite.label, sprite.artist, box, mask)
        for sprite, box, mask in zip(chosen, placed, masks, strict=True)
    )
    return Scene(index, page, things, caption(draw, things))


def place(
    draw: random.Random, sizes: Sequence[tuple[int, int]], side: int
) -> list[tuple[int, int, int, int]]:
    """Boxes of things with these proportions that do not overlap; what finds no place is drawn smaller."""
    small, large = SIZES[len(sizes)]
    boxes: list[tuple[int, int, int, int]] = []
    for width, height in sizes:
        longer = draw.uniform(small, large) * side
        while True:
            scale = longer / max(width, height)
            w, h = max(1, round(width * scale)), max(1, round(height * scale))
            found = _free_place(draw, w, h, boxes, side)
            if found:
                boxes.append(found)
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
    """A plain colour, a gradient, stripes, dots, checks or soft noise."""
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
    """Two colours of like brightness: mostly pale, so that drawings made for white pages stay visible."""
    bright = draw.random() < 0.8
    low, high = (170, 256) if bright else (20, 150)
    first = (draw.randrange(low, high), draw.randrange(low, high), draw.randrange(low, high))
    red, green, blue = (min(255, max(0, value + draw.randint(-50, 50))) for value in first)
    return first, (red, green, blue)


def _smooth(values: np.ndarray, side: int) -> Image.Image:
    small = Image.fromarray(values.round().astype(np.uint8))
    return small.resize((side, side), Image.Resampling.BICUBIC)


# {0} … are names with an article ("a tulip"), {names} the plain names separated by commas, {list} all of them with
# articles and an "and" before the last. The order of the names is drawn, whatever the places of the things.
TEMPLATES: dict[int, list[str]] = {
    1: ["{0}", "{names}", "a picture of {0}", "there is {0} here", "here we see {0}"],
    2: ["{list}", "{names}", "a picture of {list}", "{0} with {1}", "{0} next to {1}", "here we see {list}"],
    3: [
        "{list}",
        "{names}",
        "a picture of {list}",
        "{0} with {1} and {2}",
        "{0} and {1} next to {2}",
        "here we see {list}",
    ],
    4: [
        "{list}",
        "{names}",
        "a picture of {list}",
        "{0} with {1}, {2} and {3}",
        "{0} and {1} next to {2} and {3}",
        "here we see {list}",
    ],
}
RELATION_SHARE = 0.2  # of the captions of two things or more: they say where one thing is from another
RELATIONS = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def caption(draw: random.Random, things: Sequence[Thing]) -> str:
    """A sentence that names each thing once, in an order that is drawn."""
    order = draw.sample(list(things), len(things))
    if len(things) > 1 and draw.random() < RELATION_SHARE:
        sentence = relation_caption(order, draw)
        if sentence:
            return sentence
    return fill(draw.choice(TEMPLATES[len(things)]), [thing.label for thing in order])


def fill(template: str, names: Sequence[str]) -> str:
    with_article = [article(name) for name in names]
    listed = " and ".join([part for part in [", ".join(with_article[:-1]), with_article[-1]] if part])
    return template.format(*with_article, names=", ".join(names), list=listed)


def relation_caption(order: Sequence[Thing], draw: random.Random) -> str | None:
    """``a tulip left of a fish, with a bus``: a true relation of the first two; None if there is no clear one."""
    relation = relation_of(order[0], order[1], draw)
    if relation is None:
        return None
    first, second, *others = (thing.label for thing in order)
    return relation_sentence(first, relation, second, others)


def relation_sentence(first: str, relation: str, second: str, others: Sequence[str]) -> str:
    sentence = f"{article(first)} {relation} {article(second)}"
    return f"{sentence}, with {fill('{list}', others)}" if others else sentence


def relation_of(first: Thing, second: Thing, draw: random.Random) -> str | None:
    """Where the first is, seen from the second: a relation that holds for their whole boxes, or None."""
    (left, top, right, bottom), (l2, t2, r2, b2) = first.box, second.box
    true = [
        name
        for name, holds in (
            ("left of", right <= l2),
            ("right of", left >= r2),
            ("above", bottom <= t2),
            ("below", top >= b2),
        )
        if holds
    ]
    return draw.choice(true) if true else None


def article(name: str) -> str:
    """``a tulip``, ``an onion``; plurals and proper names stand alone."""
    last = name.split()[-1]
    plural = last.endswith("s") and not last.endswith(("ss", "us"))
    if plural or name[0].isupper() or name[0].isdigit():
        return name
    return f"{'an' if name[0] in 'aeiou' and not name.startswith(('uni', 'ewe', 'euro')) else 'a'} {name}"


def training_scene(
    sprites: Sprites, concepts: Sequence[str], seed: int, index: int, side: int = SCENE_SIDE
) -> Scene:
    """The training scene number ``index``: one to four things, no two of them a held-out pair."""
    draw = random.Random(f"training scene {seed} {index}")
    count = draw.choices(list(THINGS), list(THINGS.values()))[0]
    chosen = training_concepts(draw, concepts, count, pair_share(len(concepts)))
    return compose(sprites, chosen, seed, index, side)


def new_scene(
    sprites: Sprites, concepts: Sequence[str], seed: int, index: int, side: int = SCENE_SIDE, count: int = 3
) -> Scene:
    """The test scene number ``index``: three things of which every two are a held-out pair."""
    draw = random.Random(f"test scene {seed} {index}")
    return compose(sprites, new_concepts(draw, concepts, count, pair_share(len(concepts))), seed, index, side)


def make(scene: partial[Scene], count: int, processes: int) -> Iterator[Scene]:
    """Scenes 0 … count - 1 in order, made by so many processes. scene: everything but the index is given."""
    if processes <= 1:
        yield from (scene(index=index) for index in range(count))
        return
    # Forked, so that the sprites need not be sent to the workers.
    global _SCENE
    _SCENE = scene
    with get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_make_one, range(count), chunksize=64)


_SCENE: partial[Scene]


def _make_one(index: int) -> Scene:
    return _SCENE(index=index)
