"""The names that transformers gives the parts of a transformer block, which its CLIP and its SigLIP share.

No library converts them: timm's ``checkpoint_filter_fn`` (1.0.31) reads the names of OpenAI, open_clip and DINOv2,
open_clip's ``convert_state_dict`` and ``load_big_vision_weights`` (3.3.0) those of MobileCLIP and big_vision, and
transformers (5.24) converts to its own alone. SigLIP weights in open_clip's form come through ``timm:``.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = {  # ours, theirs; ours of the text tower have no "attn." and "mlp."
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def block_state(state: dict[str, Tensor], ours: str, theirs: str, layers: int, packed: str) -> dict[str, Tensor]:
    """Return the blocks ``theirs.0`` … of ``state`` as ``ours.0`` …; q, k and v become one matrix ``packed``.

    The other parts are called as in timm's ViT if ``packed`` is "attn.qkv", else as in our text tower.
    """
    found = {}
    for i in range(layers):
        for end in ("weight", "bias"):
            parts = [state[f"{theirs}.{i}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{ours}.{i}.{packed}.{end}"] = torch.cat(parts)
            for name, source in _BLOCK.items():
                part = name if "." in packed else name.rpartition(".")[2]
                found[f"{ours}.{i}.{part}.{end}"] = state[f"{theirs}.{i}.{source}.{end}"]
    return found
