"""Make folders of pictures and indexes of them, and score them without an index."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from filip.cli.command import run_command
from filip.eval.scorer import load_scorer
from filip.explore.names import encode_query
from filip.index import build
from tests.eval.miniature import write_model


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(first, first + count):
        pixels = np.random.default_rng(n).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48), Image.Resampling.NEAREST).save(folder / f"photo #{n}.png")


EXACT = ("dtype=float32",)


def build_index(folder: Path, model: str, *more: str) -> None:
    arguments = [f"model={model}", f"images={folder / 'photos'}", f"out={folder / 'index'}", "device=cpu"]
    run_command(build.main, build.Build, argv=[*arguments, "batch_size=8", *EXACT, *more])


def index_of(folder: Path, count: int, *more: str, interaction: str = "token_wise") -> str:
    """Write a model and so many pictures, and make their index; return the model's file."""
    model = write_model(folder / "model.safetensors", interaction, seed=1)
    write_images(folder / "photos", count)
    build_index(folder, model, *more)
    return model


def exact(model: str, paths: list[Path], text: str, tokens: str = "all") -> list[tuple[str, float]]:
    scorer = load_scorer(model, device="cpu")
    images = scorer.encode_images(torch.stack([scorer.transform(Image.open(path).convert("RGB")) for path in paths]))
    scores = scorer.similarity(images, encode_query(scorer, text, tokens)).t2i[:, 0]
    return sorted(zip((path.name for path in paths), scores.tolist(), strict=True), key=lambda hit: -hit[1])
