"""Write the towers of a small model as the page reads them (``assets/towers.js``): float16 weights, layer by layer.

A page that holds them encodes any text and any picture itself. Towers that the page cannot compute, or that would make
it too large, are left out; then the page shows its own captions only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from filip.eval.encoders import Encoder, FilipEncoder
from filip.explore.names import learned_tokens
from filip.explore.packing import base64_of
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.text.tokenizer import BOS, EOS, tokenize

if TYPE_CHECKING:
    from filip.models import DualEncoder

ACTIVATIONS: dict[str, str] = {
    "Identity": "none", "GELU": "gelu", "QuickGELU": "quick_gelu", "QuickGELUActivation": "quick_gelu", "ReLU": "relu",
    "ReLU6": "relu6", "SiLU": "silu",
}  # fmt: skip
PLAIN = "Identity"


class NotInPage(Exception):
    """A part of a model that the page cannot compute; the message names it."""


def own_model(encoder: Encoder) -> DualEncoder:
    """Return the model behind an encoder. Raises NotInPage if it is not this project's, or scores otherwise."""
    if not isinstance(encoder, FilipEncoder):
        raise NotInPage("only models of this project have towers that a page computes")
    model: DualEncoder = encoder.model
    if model.config.exclude_special_tokens:
        raise NotInPage("the page cannot leave out [BOS] and [EOS]")
    if not model.config.text.like_clip:
        raise NotInPage("the page reads texts by CLIP's vocabulary and computes CLIP's text tower")
    if encoder.token_wise != (model.config.interaction == "token_wise"):
        raise NotInPage("the page cannot score a pooled model token-wise")
    if model.config.reduction is not None:
        raise NotInPage("the page cannot compute learned tokens in place of patches")
    if model.config.pooling in ("heads", "relu", "bilinear"):
        raise NotInPage("the page computes no pooling but a mean or one query")
    return model


def text_tower(encoder: Encoder, texts: Iterable[str]) -> dict[str, Any]:
    """Return the text tower. texts: captions; their tokens have rows even if the model never learned them."""
    model = own_model(encoder)
    tower: Any = model.text  # the parts of its blocks are tensors or modules to mypy
    config = model.config
    ids, lengths = tokenize(list(texts), tower.context_length)
    spoken = ids[torch.arange(ids.shape[1]) < lengths[:, None]]
    learned = learned_tokens(encoder)
    rows = torch.zeros(len(tower.token_embedding.weight), dtype=torch.bool) if learned is None else learned.clone()
    rows[spoken] = True
    rows[[BOS, EOS]] = True
    unknown = [] if learned is None else (rows & ~learned).nonzero()[:, 0].tolist()
    tokens = rows.nonzero()[:, 0]
    tensors = {
        "tokens": tower.token_embedding.weight[tokens],
        "positions": tower.pos_embed,
        **_norm("norm", tower.norm),
        "projection": tower.projection.weight,
        **_query(model.text_pool),
    }
    for number, block in enumerate(tower.blocks):
        tensors |= _block(number, block.norm1, block.qkv, block.proj, block.norm2, block.fc1, block.fc2)
    return {
        **_sizes(config.text.width, config.text.heads, len(tower.blocks), tower.norm, tower.blocks[0].act),
        "context": tower.context_length,
        "dim": config.embed_dim,
        "pooling": None if encoder.token_wise else config.pooling,
        "unknown": unknown,
        "rows": base64_of(tokens.numpy().astype(np.uint16)),
        "tensors": _stored(tensors),
    }


def image_tower(encoder: Encoder) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the image tower, and the convolutional stem below it if there is one, which two models may share."""
    model = own_model(encoder)
    tower, config = model.image, model.config
    trunk: Any = tower.trunk  # timm's parts are tensors or modules to mypy
    if getattr(trunk, "rope", None) is not None:
        raise NotInPage("the page cannot compute a ViT with rotary positions")
    if trunk.no_embed_class or trunk.reg_token is not None or type(trunk.fc_norm).__name__ != PLAIN:
        raise NotInPage("the page cannot compute a ViT with registers, or with a norm after pooling")
    stem = tower.stem
    below = _Convolutions()
    below.add("patches", trunk.patch_embed.proj, PLAIN)
    tensors = {
        **below.tensors,
        "positions": trunk.pos_embed[0],
        **({"prefix": trunk.cls_token[0]} if trunk.cls_token is not None else {}),
        **_norm("norm_pre", trunk.norm_pre),
        **_norm("norm", trunk.norm),
        "projection": tower.projection.weight,
        **_query(model.image_pool),
    }
    for number, block in enumerate(trunk.blocks):
        attention, mlp = block.attn, block.mlp
        added = (block.ls1, block.ls2, attention.q_norm, attention.k_norm, getattr(attention, "norm", None), mlp.norm)
        if any(part is not None and type(part).__name__ != PLAIN for part in added):
            raise NotInPage("the page cannot compute a ViT with layer scales or further norms")
        tensors |= _block(number, block.norm1, attention.qkv, attention.proj, block.norm2, mlp.fc1, mlp.fc2)
    heads = trunk.blocks[0].attn.num_heads
    scale, shift = 1 / 255 / torch.tensor(CLIP_STD), -torch.tensor(CLIP_MEAN) / torch.tensor(CLIP_STD)
    if stem is not None:
        factor, moved = stem.factor.flatten(), stem.shift.flatten()
        scale, shift = scale * factor, shift * factor + moved
    found = {
        **_sizes(tower.width, heads, tower.depth, trunk.norm, trunk.blocks[0].mlp.act),
        "dim": config.embed_dim,
        "size": model.image_size,
        "prefix": tower.prefix_tokens,
        "cls": encoder.token_wise and config.cls_in_interaction,
        "pooling": None if encoder.token_wise else config.pooling,
        "scale": scale.tolist(),
        "shift": shift.tolist(),
        "layers_below": below.layers,
        "tensors": _stored(tensors),
    }
    return found, None if stem is None else _stem(stem.folded().network)


class _Convolutions:
    """Convolutions in the order in which the page runs them."""

    def __init__(self) -> None:
        self.layers: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}

    def add(self, name: str, layer: nn.Module, activation: str) -> None:
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size[0] != layer.kernel_size[1] or layer.dilation != (1, 1):
            raise NotInPage(f"the page computes plain convolutions only, no {type(layer).__name__}")
        if layer.groups not in (1, layer.in_channels) or activation not in ACTIVATIONS:
            raise NotInPage(f"the page cannot compute a convolution in {layer.groups} groups before {activation}")
        depthwise = layer.groups > 1
        pad = "same" if type(layer).__name__ == "Conv2dSame" else layer.padding[0]
        self.layers.append(
            {"name": name, "k": layer.kernel_size[0], "stride": layer.stride[0], "pad": pad, "out": layer.out_channels,
             "depthwise": depthwise, "activation": ACTIVATIONS[activation]}
        )  # fmt: skip
        # channels last, as the page keeps its maps: [k, k, channels] if depthwise, else [out, k, k, channels]
        self.tensors[f"{name}.weight"] = layer.weight.permute((2, 3, 0, 1) if depthwise else (0, 2, 3, 1))
        if layer.bias is not None:
            self.tensors[f"{name}.bias"] = layer.bias


def _stem(network: Any) -> dict[str, Any]:
    """Return an EfficientNet with folded norms: its convolutions, and the outputs that are added to others."""
    found = _Convolutions()
    found.add("stem", network.conv_stem, type(network.bn1).__name__)
    parts = {"DepthwiseSeparableConv": ("conv_dw", "conv_pw"), "InvertedResidual": ("conv_pw", "conv_dw", "conv_pwl")}
    for number, block in enumerate(block for stage in network.blocks for block in stage):
        names = parts.get(type(block).__name__)
        if names is None or type(block.se).__name__ != PLAIN or type(block.aa).__name__ != PLAIN:
            raise NotInPage(f"the page cannot compute a stem with {type(block).__name__} or squeeze-and-excitation")
        first = len(found.layers)
        for place, name in enumerate(names, 1):
            found.add(f"{number}.{name}", getattr(block, name), type(getattr(block, f"bn{place}")).__name__)
        if block.has_skip:
            found.layers[first]["keeps"] = found.layers[-1]["adds"] = True
    return {"layers": found.layers, "tensors": _stored(found.tensors)}


def _sizes(width: int, heads: int, layers: int, norm: Any, activation: nn.Module) -> dict[str, Any]:
    name = type(activation).__name__
    if name not in ACTIVATIONS or getattr(activation, "approximate", "none") != "none":
        raise NotInPage(f"the page cannot compute a transformer with {name}")
    return {"width": width, "heads": heads, "layers": layers, "epsilon": norm.eps, "activation": ACTIVATIONS[name]}


def _block(number: int, norm1: Any, qkv: Any, proj: Any, norm2: Any, fc1: Any, fc2: Any) -> dict[str, Tensor]:
    parts = {"norm1": norm1, "qkv": qkv, "proj": proj, "norm2": norm2, "fc1": fc1, "fc2": fc2}
    found: dict[str, Tensor] = {}
    for name, layer in parts.items():
        if layer.bias is None:
            raise NotInPage(f"the page cannot compute a transformer without a bias in {name}")
        found |= {f"{number}.{name}.weight": layer.weight, f"{number}.{name}.bias": layer.bias}
    return found


def _norm(name: str, norm: Any) -> dict[str, Tensor]:
    if type(norm).__name__ == PLAIN:
        return {}
    return {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}


def _query(pool: Any) -> dict[str, Tensor]:
    return {} if pool is None or pool.query is None else {"query": pool.query}


def _stored(tensors: dict[str, Tensor]) -> dict[str, Any]:
    values = torch.cat([tensor.detach().float().flatten() for tensor in tensors.values()]).cpu().half()
    if not bool(values.isfinite().all()):
        raise NotInPage("the page stores float16, which cannot hold these weights")
    return {"sizes": {name: tensor.numel() for name, tensor in tensors.items()}, "values": base64_of(values)}
