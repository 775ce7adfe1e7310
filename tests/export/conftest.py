"""Small trained-looking models to export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from filip.models import ModelConfig, build_model, load_preset, save_model
from tests.eval.miniature import picture


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Return images of several sizes, one grey and one with an alpha channel."""
    return [
        picture(0, 32), picture(1, 48).resize((70, 41)), picture(2, 40).convert("L"), picture(3, 33).convert("RGBA"),
    ]  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., str]:
    """Return a writer of a tiny random model, whose config the given function changes; the writer returns its file."""

    def save(change: Callable[[ModelConfig], object] | None = None) -> str:
        torch.manual_seed(0)
        config = load_preset("tiny")
        if change is not None:
            change(config)
        model = build_model(config)
        with torch.no_grad():  # norms and biases too, which start at 1 and 0
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        save_model(tmp_path / "models" / "m.safetensors", model, {"run": "tiny", "steps": 3})
        return str(tmp_path / "models" / "m.safetensors")

    return save
