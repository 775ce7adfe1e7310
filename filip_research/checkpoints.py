"""Read checkpoints of models that are built as OpenAI's CLIP, and build open_clip's towers for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.errors import UserError, first_line
from filip.files import nothing_at

HEAD = 64  # channels of an attention head in OpenAI's towers


def clip_of(state: dict[str, Tensor], quick_gelu: bool) -> Any:
    """Build open_clip's ViT of the sizes that tensors have, with heads of 64 channels as OpenAI's, and load them.

    Raises KeyError, ValueError or RuntimeError if they are not such a model's.
    """
    from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg

    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = patch * round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vocabulary, text_width = state["token_embedding.weight"].shape
    context = len(state["positional_embedding"])
    model = CLIP(
        state["visual.proj"].shape[1],
        CLIPVisionCfg(_blocks(state, "visual."), width, HEAD, image_size=side, patch_size=patch),
        CLIPTextCfg(context, vocabulary, width=text_width, heads=text_width // HEAD, layers=_blocks(state, "")),
        quick_gelu=quick_gelu,
    )
    model.load_state_dict(state)
    return model


def _blocks(state: dict[str, Tensor], prefix: str) -> int:
    start = f"{prefix}transformer.resblocks."
    return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})


def read_checkpoint(file: str, whose: str, entry: str) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their names, without the prefix of their wrapper.

    whose: "a checkpoint of …", for messages. entry: under which the tensors are, if there is anything else.
    """
    if not Path(file).is_file():
        raise UserError(nothing_at(Path(file), f"give {whose}"))
    try:
        # With their optimiser's state, a checkpoint holds tensors, numbers and strings alone.
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"torch cannot read {file}: {first_line(error)}") from error
    state = content.get(entry, content) if isinstance(content, dict) else {}
    return {str(name).removeprefix("module."): value for name, value in state.items()}
