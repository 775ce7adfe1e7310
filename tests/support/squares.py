"""A little data set: squares that a colour and a place describe."""

from collections.abc import Iterable
from itertools import permutations
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.shards import Sample, encoded, write_shard, write_tar

COLOURS = {
    "red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 220), "yellow": (240, 220, 40),
    "purple": (140, 40, 160), "orange": (250, 140, 20), "black": (15, 15, 15), "white": (245, 245, 245),
}  # fmt: skip
PLACES = ("left", "right", "top", "bottom")


def write_shards(folder: Path, shards: int, per_shard: int, seed: int = 0) -> None:
    """Write shards and side-cars of squares that a colour and a place describe."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    for s in range(shards):
        samples = []
        for i in range(per_shard):
            front, back = rng.choice(len(names), 2, replace=False)
            place = int(rng.integers(len(PLACES)))
            image = picture(COLOURS[names[front]], COLOURS[names[back]], PLACES[place])
            text = f"a {names[front]} square at the {PLACES[place]} on {names[back]}"
            candidates = [text, f"{names[front]} square, {PLACES[place]}, {names[back]}"]
            samples.append(Sample(f"{s:05d}{i:04d}", image, candidates, int(front * 64 + back * 8 + place)))
        write_shard(folder, s, samples)


def square(n: int) -> tuple[bytes, str]:
    """Return an image and its caption; each n below 224 gives another."""
    front, back = list(permutations(COLOURS, 2))[n % 56]
    place = PLACES[n // 56]
    return picture(COLOURS[front], COLOURS[back], place), f"a {front} square at the {place} on {back}"


def write_test_set(folder: Path, numbers: Iterable[int]) -> None:
    """Write these squares with their captions, in CLIP_benchmark's layout for retrieval."""
    folder.mkdir(parents=True)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    members: list[tuple[str, bytes]] = []
    for n in numbers:
        image, caption = square(n)
        members += [(f"s{n:07d}.png", image), (f"s{n:07d}.txt", caption.encode())]
    write_tar(folder / "test/0.tar", members)
    (folder / "test/nshards.txt").write_text("1\n")


def picture(front: tuple[int, ...], back: tuple[int, ...], place: str) -> bytes:
    pixels = np.zeros((40, 40, 3), np.uint8) + np.array(back, np.uint8)
    rows, columns = {
        "left": (slice(12, 28), slice(2, 18)),
        "right": (slice(12, 28), slice(22, 38)),
        "top": (slice(2, 18), slice(12, 28)),
        "bottom": (slice(22, 38), slice(12, 28)),
    }[place]
    pixels[rows, columns] = front
    return encoded(Image.fromarray(pixels))
