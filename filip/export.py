"""Plain float32 safetensors from a training checkpoint of any ZeRO stage.

    python -m filip.export run_dir=results/demo/runs/filip-1a2b3c4d out=model.safetensors

A finished training has written its own model already; this is for runs that are still going, or were given up.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.models import build_model, config_from_dict, save_model
from filip.train.checkpoint import LoopState, find_checkpoint, read_state
from filip.train.telemetry import say


@dataclass
class Export:
    """Options of the command."""

    run_dir: str = option(MISSING, "the run whose checkpoint is exported")
    out: str = option(MISSING, "the safetensors file to write, model config included")
    checkpoint: str = option("auto", "auto = the newest one, or a folder run_dir/checkpoints/stepNNNNNNNN")


def export(config: Export) -> None:
    """Write the weights of a checkpoint as one float32 safetensors file with its model config."""
    folder = Path(config.run_dir) / "checkpoints"
    checkpoint = find_checkpoint(folder, config.checkpoint)
    if checkpoint is None:
        raise UserError(
            f"no finished checkpoint in {folder}; was the run started, and long enough to save one?"
        )
    state = read_state(checkpoint)
    weights = checkpoint_weights(checkpoint, state)
    with torch.device("meta"):
        model = build_model(config_from_dict(state.model))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise UserError(f"{checkpoint} does not hold the model of its own {wrong!r}; it is damaged")
    save_model(config.out, model, {"checkpoint": str(checkpoint), "steps": state.step}, state=weights)
    say(f"wrote {config.out}: {sum(w.numel() for w in weights.values()):,} parameters of step {state.step}")


def checkpoint_weights(checkpoint: Path, state: LoopState) -> dict[str, Tensor]:
    """The float32 state dict in a checkpoint."""
    if state.zero_stage == 0:
        saved: dict[str, Any] = torch.load(
            checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
        )
        return {name: value.float() for name, value in saved["module"].items()}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # silence its verbose output
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return {name: value.detach().float().contiguous() for name, value in weights.items()}


if __name__ == "__main__":
    run_command(export, Export)
