"""Build pictures with as many patches, and captions with as many tokens, as the paper's models see.

    python -m filip_demo.patterns out=DIR

A picture has 7 x 7 cells of 8 px: six show one of 48 patterns each, the others noise. Its caption names the six in 31
tokens: "there is a dog, there is a cup, …". A quarter of them is 13 patches and 8 tokens, which has room for all six.
``out`` has the files of ``filip_demo.corpus``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from filip.cli.command import MISSING, option, run_command
from filip.common.files import write_json
from filip.common.progress import say
from filip_demo.scene_sets import write_scene_sets, write_training_scenes
from filip_demo.scenes import DrawnThing, Scene
from filip_demo.training_list import training_table, write_captions, write_table

NAMES = [  # one for each pattern, a token each
    "dog", "cat", "cow", "horse", "sheep", "duck", "bear", "lion", "wolf", "fish", "bird", "bee", "tree",
    "rose", "leaf", "grass", "sun", "moon", "star", "rain", "snow", "wind", "fire", "rock", "car", "bus",
    "train", "boat", "plane", "bike", "road", "house", "door", "roof", "wall", "bed", "chair", "table", "lamp",
    "book", "pen", "cup", "fork", "knife", "spoon", "bowl", "hat", "shoe",
]  # fmt: skip
GRID, CELL, THINGS = 7, 8, 6  # cells a side, pixels of a cell a side, patterns in a picture
SIDE = GRID * CELL
PATTERNS = np.random.default_rng(0).normal(size=(len(NAMES), CELL, CELL, 3))
MAKER = "filip_demo.patterns"


@dataclass
class Patterns:
    out: str = option(MISSING, "folder that will hold the pictures", writes="folder")
    scenes: int = option(2400, "training pictures", at_least=0)
    test_scenes: int = option(500, "pictures in each test set", at_least=1)
    processes: int = option(0, "processes that draw; 0 = one per core", at_least=0)


def main(config: Patterns) -> None:
    """Build pictures of patterns among noise: a table of images and captions to train on, and two test sets."""
    out, processes = Path(config.out), config.processes or len(os.sched_getaffinity(0))
    scenes = write_training_scenes(out, partial(pattern_scene, 0), config.scenes, processes)
    counts = write_scene_sets(
        {"patterns_new": partial(pattern_scene, 1), "patterns_search": partial(pattern_scene, 2)},
        out / "eval", config.test_scenes, processes, lambda scene: {},
    )  # fmt: skip
    table = training_table([], scenes, [], "")
    write_table(table, out / "list.parquet")
    write_captions(table, out / "captions.csv")
    about = {"title": "Patterns among noise", "author": MAKER, "license": "CC0-1.0", "role": "pictures and captions"}
    write_json(out / "attribution.json", {MAKER: about})
    os.sync()
    write_json(out / "corpus.json", {"pairs": len(table), "things": len(NAMES), "eval": counts})
    say(f"{out}: {len(table):,} pictures of {THINGS} of {len(NAMES)} patterns each, {len(counts)} test sets")


def pattern_scene(seed: int, index: int) -> Scene:
    """Draw picture number ``index``: THINGS different patterns among noise, and a caption that names them."""
    draw = np.random.default_rng([seed, index])
    places, shown = (draw.permutation(count)[:THINGS] for count in (GRID**2, len(NAMES)))
    cells = 0.5 * draw.normal(size=(GRID**2, CELL, CELL, 3))
    cells[places] += PATTERNS[shown]
    rows = cells.reshape(GRID, GRID, CELL, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(SIDE, SIDE, 3)
    image = Image.fromarray(np.clip(128 + 50 * rows, 0, 255).astype(np.uint8))
    names = [NAMES[number] for number in shown]
    things = tuple(_thing(name, int(place)) for name, place in zip(names, places, strict=True))
    return Scene(index, image, things, ", ".join(f"there is a {name}" for name in names))


def _thing(name: str, place: int) -> DrawnThing:
    top, left = (CELL * number for number in divmod(place, GRID))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top : top + CELL, left : left + CELL] = True
    return DrawnThing(name, name, MAKER, (left, top, left + CELL, top + CELL), mask)


if __name__ == "__main__":
    run_command(main, Patterns)
