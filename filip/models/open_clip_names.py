"""Map our parameters to their counterparts in open_clip's CLIP, and convert its tensors."""

from __future__ import annotations

import torch
from torch import Tensor

# Ours on the left, open_clip's on the right.
_IMAGE = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj.weight": "conv1.weight",
    "norm_pre": "ln_pre",
    "norm": "ln_post",
}
_IMAGE_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.weight": "attn.in_proj_weight",
    "attn.qkv.bias": "attn.in_proj_bias",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TEXT = {"token_embedding.weight": "token_embedding.weight", "pos_embed": "positional_embedding", "norm": "ln_final"}
_TEXT_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "qkv.weight": "attn.in_proj_weight",
    "qkv.bias": "attn.in_proj_bias",
    "proj": "attn.out_proj",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}


def open_clip_names(image_layers: int, text_layers: int) -> dict[str, str]:
    """Map the names of our parameters to the names in ``open_clip.CLIP`` with as many blocks."""
    names = {
        "logit_scale": "logit_scale",
        "image.projection.weight": "visual.proj",
        "text.projection.weight": "text_projection",
    }
    for ours, theirs, table, block, layers in (
        ("image.trunk.", "visual.", _IMAGE, _IMAGE_BLOCK, image_layers),
        ("text.", "", _TEXT, _TEXT_BLOCK, text_layers),
    ):
        tower = dict(table)
        for i in range(layers):
            tower |= {f"blocks.{i}.{a}": f"transformer.resblocks.{i}.{b}" for a, b in block.items()}
        for a, b in tower.items():
            is_layer = a.rpartition(".")[2].startswith("norm") or a.endswith(("proj", "fc1", "fc2"))
            ends = (".weight", ".bias") if is_layer else ("",)
            names |= {f"{ours}{a}{end}": f"{theirs}{b}{end}" for end in ends}
    return names


def from_open_clip(state: dict[str, Tensor], image_layers: int, text_layers: int) -> dict[str, Tensor]:
    """Convert open_clip's state dict to ours, without its masks; raise KeyError if a tensor is missing."""
    names = open_clip_names(image_layers, text_layers)
    return {ours: _as_ours(ours, state[theirs]) for ours, theirs in names.items()}


def _as_ours(name: str, value: Tensor) -> Tensor:
    value = value.detach().to("cpu", torch.float32)
    if name.endswith("projection.weight"):
        return value.T.contiguous()
    if name in ("image.trunk.cls_token", "image.trunk.pos_embed"):
        return value.reshape(1, -1, value.shape[-1])
    return value.reshape(1) if name == "logit_scale" else value
