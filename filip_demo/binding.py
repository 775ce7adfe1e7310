"""Build scenes of tinted things, which ask which colour belongs to which thing.

    python -m filip_demo.binding out=DIR

A scene shows things of one artist in different colours: "a red cat, a blue crab and a pink kiwi". Every third thing is
reserved: training never shows it red, green or blue. A test scene shows reserved things in exactly these colours, so
that a caption with two of them exchanged is as new as the true one. ``out`` has the files of ``filip_demo.corpus``;
``exchange.txt`` in a test sample has the caption, and one with two colours exchanged.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from filip.cli.command import MISSING, option, run_command
from filip.common.files import write_json
from filip.common.progress import say
from filip_demo.catalogue import Catalogue
from filip_demo.corpus import attribution
from filip_demo.packages import fetch_packages
from filip_demo.render import Rendering, render_all, svg_document
from filip_demo.scene_captions import fill
from filip_demo.scene_sets import LIST, write_scene_sets, write_training_scenes
from filip_demo.scenes import Scene, Sprite, compose, load_sprites
from filip_demo.sprites import ARTIST, things_to_tint
from filip_demo.training_list import training_table, write_captions, write_table

COLOURS = {
    "red": (225, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (245, 215, 40),
    "purple": (145, 60, 185), "orange": (245, 140, 30), "pink": (245, 140, 190), "cyan": (60, 205, 220),
}  # fmt: skip
RESERVED = 3  # every third thing
DARKEST = 0.35  # share of its colour that a black pixel keeps
NEW = ("red", "green", "blue")  # no reserved thing has one of them in training


@dataclass
class Binding:
    out: str = option(MISSING, "folder that will hold the scenes", writes="folder")
    limit: int | None = option(None, "keep only this many things (tests); null = all", at_least=9)
    scenes: int = option(20_000, "training scenes to compose", at_least=0)
    test_scenes: int = option(1000, "scenes in each test set", at_least=1)
    cache: str = option(".cache/demo", "folder where the npm packages are kept")
    processes: int = option(0, "processes that render; 0 = one per core", at_least=0)


def main(config: Binding) -> None:
    """Build scenes of tinted things: a table of images and captions to train on, and test sets."""
    out = Path(config.out)
    processes = config.processes or len(os.sched_getaffinity(0))
    modules = fetch_packages(config.cache)
    drawings = list(things_to_tint(Catalogue(modules)).values())[: config.limit]
    files = [Rendering(svg_document(d), sprite=f"{out}/sprites/{d.artist}/{d.slug}.png") for d in drawings]
    render_all(files, processes, "drawings")
    sprites = {s.emoji.label.lower(): s for (s,) in load_sprites(drawings, out / "sprites").values()}
    scenes = write_training_scenes(out, partial(binding_scene, sprites, 0), config.scenes, processes)
    makers = {
        f"binding_{name}": partial(new_binding_scene, sprites, seed) for name, seed in (("new", 1), ("search", 2))
    }
    counts = write_scene_sets(makers, out / "eval", config.test_scenes, processes, exchange)
    table = training_table([], scenes, [], "")
    write_table(table, out / "list.parquet")
    write_captions(table, out / "captions.csv")
    authors = attribution(modules, [], scenes, [], counts)
    write_json(out / "attribution.json", {key: authors[key] for key in (ARTIST, "emojibase-data")})
    os.sync()
    write_json(out / "corpus.json", {"pairs": len(table), "things": len(sprites), "eval": counts})
    say(f"{out}: {len(table):,} scenes of {len(sprites)} things, {len(counts)} test sets")


def binding_scene(sprites: Mapping[str, Sprite], seed: int, index: int) -> Scene:
    """Compose training scene number ``index``, in which no reserved thing has a new colour."""
    draw = random.Random(f"tinted training scene {seed} {index}")
    names = draw.sample(list(sprites), draw.choice((2, 3, 4)))
    while True:
        chosen = draw.sample(list(COLOURS), len(names))
        if not any(c in NEW and name in reserved(sprites) for name, c in zip(names, chosen, strict=True)):
            return tinted_scene(sprites, names, chosen, seed, index)


def new_binding_scene(sprites: Mapping[str, Sprite], seed: int, index: int) -> Scene:
    """Compose test scene number ``index``: reserved things with the new colours."""
    draw = random.Random(f"tinted test scene {seed} {index}")
    names = draw.sample(reserved(sprites), len(NEW))
    return tinted_scene(sprites, names, draw.sample(list(NEW), len(NEW)), seed, index)


def reserved(sprites: Mapping[str, Sprite]) -> list[str]:
    """Return the names of the things that no training scene shows with a new colour."""
    return list(sprites)[::RESERVED]


def tinted_scene(
    sprites: Mapping[str, Sprite], names: Sequence[str], colours: Sequence[str], seed: int, index: int
) -> Scene:
    """Compose a scene of things, each with its colour; its caption is in their order."""
    things = []
    for name, colour in zip(names, colours, strict=True):
        sprite = tinted(sprites[name], colour)
        emoji = replace(sprite.emoji, label=f"{colour} {name}", concept=f"{colour} {sprite.emoji.concept}")
        things.append(replace(sprite, emoji=emoji))
    concepts = {thing.emoji.concept: [thing] for thing in things}
    scene = compose(concepts, list(concepts), seed, index)
    labels = [thing.emoji.label for thing in things]
    shown = sorted(scene.things, key=lambda thing: labels.index(thing.label))
    return replace(scene, things=tuple(shown), caption=fill(LIST, labels))


def tinted(sprite: Sprite, colour: str) -> Sprite:
    """Return the thing in a colour: the lightness of its pixels, from DARKEST of the colour to the colour itself."""
    pixels = np.array(sprite.image)
    grey = np.asarray(sprite.image.convert("L"))[:, :, None] / 255
    pixels[:, :, :3] = (np.array(COLOURS[colour]) * (DARKEST + (1 - DARKEST) * grey)).round()
    return replace(sprite, image=Image.fromarray(pixels))


def exchange(scene: Scene) -> dict[str, list[str]]:
    """Return the scene's caption, and the same with the colours of two of its things exchanged."""
    labels = [thing.label for thing in scene.things]
    i, j = random.Random(f"exchange {scene.caption} {scene.index}").sample(range(len(labels)), 2)
    (first, one), (second, other) = labels[i].split(" ", 1), labels[j].split(" ", 1)
    labels[i], labels[j] = f"{second} {one}", f"{first} {other}"
    return {"exchange.txt": [scene.caption, fill(LIST, labels)]}


if __name__ == "__main__":
    run_command(main, Binding)
