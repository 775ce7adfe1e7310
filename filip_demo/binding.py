"""Build scenes of tinted, sized or counted things, which ask which property belongs to which thing.

    python -m filip_demo.binding out=DIR
    python -m filip_demo.binding out=DIR properties=[size,number]
    python -m filip_demo.binding out=DIR properties=[colour,place]
    python -m filip_demo.binding out=DIR filler=250

A scene shows things of one artist that differ in a property: "a red cat, a blue crab and a pink kiwi", "a small cat and
a huge crab", "two cats and a single crab"; or it tells the place of one: "a cat left of a crab". Every third thing is
reserved: training never shows it red, green or blue, small or large, two or three times, or tells its place by another
reserved thing. A test scene shows reserved things in exactly these ways, so that a caption with two of them exchanged
is as new as the true one. ``out`` has the files of ``filip_demo.corpus``; ``exchange.txt`` in a test sample has the
caption, and one with two values, or the two things of a place, exchanged. With ``filler`` captions are long, and there
is no ``exchange.txt``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.errors import UserError, one_of
from filip.files import write_json
from filip.progress import say
from filip_demo.catalogue import Catalogue
from filip_demo.corpus import attribution
from filip_demo.packages import fetch_packages
from filip_demo.render import Rendering, render_all, svg_document
from filip_demo.scene_captions import article, fill, relation_caption
from filip_demo.scene_sets import LIST, write_scene_sets, write_training_scenes
from filip_demo.scenes import SIZES, Scene, Sprite, compose, load_sprites
from filip_demo.sprites import ARTIST, things_to_tint
from filip_demo.training_list import training_table, write_captions, write_table

COLOURS = {
    "red": (225, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (245, 215, 40),
    "purple": (145, 60, 185), "orange": (245, 140, 30), "pink": (245, 140, 190), "cyan": (60, 205, 220),
}  # fmt: skip
RESERVED = 3  # every third thing
DARKEST = 0.35  # share of its colour that a black pixel keeps
FILLER = [  # words that say nothing of a scene
    "the", "of", "and", "to", "in", "is", "it", "that", "was", "for", "on", "are", "with", "as", "his", "they", "at",
    "be", "this", "from", "have", "or", "by", "had", "not", "but", "what", "all", "were", "when", "we", "can",
    "there", "use", "an", "each", "which", "she", "do", "how", "their", "if", "will", "other", "about", "out", "many",
    "then", "them", "these", "so", "some", "her", "would", "make", "like", "him", "into", "time", "has", "look",
    "more", "write", "go", "see", "number", "no", "way", "could", "people", "my", "than", "been", "call", "who",
    "its", "now", "find", "long", "down", "day", "did", "get", "come", "made", "may", "part", "over", "new", "sound",
    "take", "only", "little", "work", "know", "place", "year", "live", "me", "back", "give", "most", "very", "after",
    "thing", "our", "just", "name", "good", "sentence", "man", "think", "say", "great", "where", "help", "through",
    "much", "before", "line", "right", "too", "mean", "old", "any", "same", "tell",
]  # fmt: skip
EACH = (0.16, 0.22)  # longer side of each of several equal things, as a share of the scene's


@dataclass(frozen=True)
class Property:
    """A property that tells the things of a scene apart. No reserved thing has one of the first ``new`` in training."""

    values: Mapping[str, Any]
    new: int  # the things of a test scene, too
    things: tuple[int, ...]  # in a training scene


PROPERTIES = {
    "colour": Property(COLOURS, 3, (2, 3, 4)),
    # longer sides as shares of the scene's
    "size": Property({"small": (0.18, 0.22), "large": (0.3, 0.36), "tiny": (0.1, 0.13), "huge": (0.4, 0.46)}, 2, (2,)),
    "number": Property({"two": 2, "three": 3, "single": 1, "four": 4}, 2, (2,)),
}
PLACE = "place"  # of one thing, seen from another: no property, for it is of both
SETS = {"colour": "binding"}  # beginnings of the test sets' names, by default the property


@dataclass
class Binding:
    out: str = option(MISSING, "folder that will hold the scenes", writes="folder")
    properties: list[str] = option(["colour"], "what the things differ in, by turns: colour, size, number, place")
    filler: int = option(0, "words that follow each caption and say nothing of its scene", at_least=0)
    limit: int | None = option(None, "keep only this many things (tests); null = all", at_least=9)
    scenes: int = option(20_000, "training scenes to compose", at_least=0)
    test_scenes: int = option(1000, "scenes in each test set", at_least=1)
    cache: str = option(".cache/demo", "folder where the npm packages are kept")
    processes: int = option(0, "processes that render; 0 = one per core", at_least=0)


def main(config: Binding) -> None:
    """Build scenes of tinted things: a table of images and captions to train on, and test sets."""
    kinds = [*PROPERTIES, PLACE]
    if unknown := set(config.properties) - set(kinds):
        raise UserError(f"properties={','.join(config.properties)}{one_of(min(unknown), kinds)}")
    out = Path(config.out)
    processes = config.processes or len(os.sched_getaffinity(0))
    modules = fetch_packages(config.cache)
    drawings = list(things_to_tint(Catalogue(modules)).values())[: config.limit]
    files = [Rendering(svg_document(d), sprite=f"{out}/sprites/{d.artist}/{d.slug}.png") for d in drawings]
    render_all(files, processes, "drawings")
    sprites = {s.emoji.label.lower(): s for (s,) in load_sprites(drawings, out / "sprites").values()}
    make = partial(binding_scene, sprites, config.properties, seed=0)
    scenes = write_training_scenes(out, partial(with_filler, make, config.filler), config.scenes, processes)
    makers = {
        f"{SETS.get(name, name)}_{purpose}": partial(
            with_filler, partial(new_binding_scene, sprites, name, seed=seed), config.filler
        )
        for name in config.properties
        for purpose, seed in (("new", 1), ("search", 2))
    }
    counts = write_scene_sets(
        makers, out / "eval", config.test_scenes, processes, (lambda scene: {}) if config.filler else exchange
    )
    table = training_table([], scenes, [], "")
    write_table(table, out / "list.parquet")
    write_captions(table, out / "captions.csv")
    authors = attribution(modules, [], scenes, [], counts)
    write_json(out / "attribution.json", {key: authors[key] for key in (ARTIST, "emojibase-data")})
    os.sync()
    write_json(out / "corpus.json", {"pairs": len(table), "things": len(sprites), "eval": counts})
    say(f"{out}: {len(table):,} scenes of {len(sprites)} things, {len(counts)} test sets")


def binding_scene(sprites: Mapping[str, Sprite], properties: Sequence[str], seed: int, index: int) -> Scene:
    """Compose training scene number ``index``, in which no reserved thing has a new value of the scene's property."""
    kind = properties[index % len(properties)]
    draw = random.Random(f"tinted training scene {seed} {index}")
    if kind == PLACE:
        names = draw.sample(list(sprites), 2)
        while set(names) <= set(reserved(sprites)):
            names = draw.sample(list(sprites), 2)
        return placed_scene(sprites, names, seed, index)
    values, new = list(PROPERTIES[kind].values), new_values(kind)
    names = draw.sample(list(sprites), draw.choice(PROPERTIES[kind].things))
    while True:
        chosen = draw.sample(values, len(names))
        if not any(value in new and name in reserved(sprites) for name, value in zip(names, chosen, strict=True)):
            return compose_with(kind, sprites, names, chosen, seed, index)


def new_binding_scene(sprites: Mapping[str, Sprite], kind: str, seed: int, index: int) -> Scene:
    """Compose test scene number ``index``: reserved things with the new values of the property ``kind``."""
    draw = random.Random(f"tinted test scene {seed} {index}")
    if kind == PLACE:
        return placed_scene(sprites, draw.sample(reserved(sprites), 2), seed, index)
    new = new_values(kind)
    names = draw.sample(reserved(sprites), len(new))
    return compose_with(kind, sprites, names, draw.sample(new, len(new)), seed, index)


def with_filler(make: Callable[..., Scene], words: int, index: int) -> Scene:
    """Return a scene with so many drawn words of ``FILLER`` behind its caption."""
    scene = make(index=index)
    drawn = random.Random(f"filler {index} {scene.caption}").choices(FILLER, k=words)
    return replace(scene, caption=". ".join([scene.caption, " ".join(drawn)]) if words else scene.caption)


def new_values(kind: str) -> list[str]:
    """Return the values of a property that test scenes show of reserved things, and no training scene."""
    return list(PROPERTIES[kind].values)[: PROPERTIES[kind].new]


def reserved(sprites: Mapping[str, Sprite]) -> list[str]:
    """Return the names of the things that no training scene shows with a new value."""
    return list(sprites)[::RESERVED]


def compose_with(
    kind: str, sprites: Mapping[str, Sprite], names: Sequence[str], values: Sequence[str], seed: int, index: int
) -> Scene:
    """Compose a scene of things, each with its value of the property ``kind``; its caption is in their order."""
    things, sizes = [], []
    for name, value in zip(names, values, strict=True):
        what = PROPERTIES[kind].values[value]
        copies = what if kind == "number" else 1
        sprite = tinted(sprites[name], value) if kind == "colour" else sprites[name]
        label = f"{value} {plural(name) if copies > 1 else name}"
        emoji = replace(sprite.emoji, label=label, concept=f"{value} {sprite.emoji.concept}")
        things += [replace(sprite, emoji=emoji)] * copies
        sizes += [{"colour": SIZES[len(names)], "size": what, "number": EACH}[kind]] * copies
    order = sorted(range(len(things)), key=lambda i: -sizes[i][0])  # the largest finds its place first
    concepts = {thing.emoji.concept: [thing] for thing in things}
    scene = compose(concepts, [things[i].emoji.concept for i in order], seed, index, sizes=[sizes[i] for i in order])
    labels = [thing.emoji.label for thing in things]
    shown = sorted(scene.things, key=lambda thing: labels.index(thing.label))
    return replace(scene, things=tuple(shown), caption=fill(LIST, list(dict.fromkeys(labels))))


def placed_scene(sprites: Mapping[str, Sprite], names: Sequence[str], seed: int, index: int) -> Scene:
    """Compose a scene of two things whose caption tells where the first is, seen from the second."""
    things = {sprites[name].emoji.concept: [sprites[name]] for name in names}
    scene = compose(things, list(things), seed, index)
    caption = relation_caption(scene.things, random.Random(f"place {seed} {index}"))
    assert caption, "two boxes that do not overlap have a clear relation"
    return replace(scene, caption=caption)


def tinted(sprite: Sprite, colour: str) -> Sprite:
    """Return the thing in a colour: the lightness of its pixels, from DARKEST of the colour to the colour itself."""
    pixels = np.array(sprite.image)
    grey = np.asarray(sprite.image.convert("L"))[:, :, None] / 255
    pixels[:, :, :3] = (np.array(COLOURS[colour]) * (DARKEST + (1 - DARKEST) * grey)).round()
    return replace(sprite, image=Image.fromarray(pixels))


def plural(name: str) -> str:
    if article(name) == name:  # "pancakes"
        return name
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return name + ("es" if name.endswith(("s", "x", "z", "ch", "sh")) else "s")


def exchange(scene: Scene) -> dict[str, list[str]]:
    """Return the scene's caption, and the same with the values of two of its things, or the two things, exchanged."""
    labels = list(dict.fromkeys(thing.label for thing in scene.things))
    if scene.caption != fill(LIST, labels):
        first, second = map(article, labels)
        relation = scene.caption.removeprefix(first).removesuffix(second)
        return {"exchange.txt": [scene.caption, f"{second}{relation}{first}"]}
    i, j = random.Random(f"exchange {scene.caption} {scene.index}").sample(range(len(labels)), 2)
    (first, one), (second, other) = labels[i].split(" ", 1), labels[j].split(" ", 1)
    labels[i], labels[j] = f"{second} {one}", f"{first} {other}"
    return {"exchange.txt": [scene.caption, fill(LIST, labels)]}


if __name__ == "__main__":
    run_command(main, Binding)
