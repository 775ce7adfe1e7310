"""Make folders of pictures and indexes of them, and score them without an index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from filip import load
from filip.command import run_command
from filip.index import build


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        pixels = np.random.default_rng(n).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48), Image.Resampling.NEAREST).save(folder / f"photo #{n}.png")


EXACT = ("dtype=float32", "pool=1")


def build_index(folder: Path, model: str, *more: str) -> None:
    arguments = [f"model={model}", f"images={folder / 'photos'}", f"out={folder / 'index'}", "device=cpu"]
    run_command(build.main, build.Build, argv=[*arguments, "batch_size=8", *EXACT, *more])


def exact(model: str, paths: list[Path], text: str) -> list[tuple[str, float]]:
    scores = load(model, device="cpu").similarity([str(path) for path in paths], [text]).t2i[:, 0]
    return sorted(zip((path.name for path in paths), scores.tolist(), strict=True), key=lambda hit: -hit[1])
