"""Small trained-looking models to export, and programs that read what was exported."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from filip.models import ModelConfig, build_model, load_preset, save_model
from tests.eval.miniature import picture
from tests.support.captions import UNTIDY_CAPTIONS
from tests.support.processes import run_well

ROOT = Path(__file__).resolve().parents[2]


ALONE = """
import sys
sys.path[:] = [p for p in sys.path if p not in ("", {root!r})]
sys.modules["filip"] = None  # an editable install would bring it back
"""


def run_without_us(program: str, folder: Path) -> None:
    """Run a program in a process that cannot import this project, nor reach a hub."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1"}
    run_well("-c", ALONE.format(root=str(ROOT)) + program, variables=environment, cwd=folder)


def write_inputs(folder: Path, pictures: list[Image.Image]) -> None:
    for i, image in enumerate(pictures):
        image.save(folder / f"{i}.png")
    (folder / "captions.json").write_text(json.dumps(UNTIDY_CAPTIONS))


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Return images of several sizes, one grey and one with an alpha channel."""
    return [
        picture(0, 32), picture(1, 48).resize((70, 41)), picture(2, 40).convert("L"), picture(3, 33).convert("RGBA"),
    ]  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Return a writer of a tiny random model, whose config the given function changes; the writer returns its file.

    zeros: so many of the last tokens' embeddings are zero, as in a compact file.
    """

    def save(change: Callable[[ModelConfig], object] | None = None, zeros: int = 0) -> str:
        torch.manual_seed(0)
        config = load_preset("tiny")
        if change is not None:
            change(config)
        model = build_model(config)
        with torch.no_grad():  # norms and biases too, which start at 1 and 0
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
            model.text.token_embedding.weight[config.text.vocab_size - zeros :] = 0
        save_model(tmp_path / "models" / "m.safetensors", model, {"run": "tiny", "steps": 3})
        return str(tmp_path / "models" / "m.safetensors")

    return save
