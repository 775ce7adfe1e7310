"""Read the full weights in a checkpoint, with adapters merged."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from filip.runs.checkpoint import AVERAGED, LoopState

_ADAPTER = ".lora_{}.default.weight"  # as peft names them
ADAPTER_SCALE = 2  # what adapters count: alpha / rank of LoRA. Another scale is another learning rate of theirs


def checkpoint_weights(checkpoint: Path, state: LoopState) -> dict[str, Tensor]:
    """Return the float32 state dict in a checkpoint: the averaged weights, if the training averages them."""
    if (checkpoint / AVERAGED).is_file():
        return dict(load_file(checkpoint / AVERAGED))
    whole: dict[str, Tensor] = {}
    if state.zero_stage < 3:  # includes frozen weights, of which ZeRO-1 keeps no other copy
        saved: dict[str, Any] = torch.load(
            checkpoint / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False
        )
        whole = {name: value.float() for name, value in saved["module"].items()}
    if state.zero_stage == 0:
        return whole
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):  # silence its verbose output
        weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint.parent), tag=checkpoint.name)
    return whole | {name: value.detach().float().contiguous() for name, value in weights.items()}


def merged(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of the equivalent model without adapters; ``state`` itself if it has none."""
    plain = {}
    for name, value in state.items():
        layer, base, kind = name.rpartition(".base_layer.")
        if not base:
            if ".lora_" not in name:
                plain[name] = value
            continue
        if kind == "weight":
            down, up = (state[layer + _ADAPTER.format(side)].float() for side in "AB")
            value = value.float() + ADAPTER_SCALE * (up @ down)
        plain[f"{layer}.{kind}"] = value
    return plain
