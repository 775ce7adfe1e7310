"""Define FILIP's towers for inference: unit embeddings of padded batches, parameters named as in training."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Self

import timm
import torch
import torch.nn.functional as F
from timm.layers import HybridEmbed
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Stem(nn.Module):
    """Convolutional network from pixels normalised as CLIP's to a feature map; its cells are the patches.

    It is frozen, and in evaluation mode also while the towers above it are trained: batch norms that follow the batch
    would give these another feature map than they have learned from.
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, name: str, stride: int) -> None:
        super().__init__()
        network: Any = timm.create_model(name, features_only=True)
        level = network.feature_info.reduction().index(stride)
        network = timm.create_model(name, features_only=True, out_indices=(level,))
        if stages := getattr(network, "_stage_out_idx", None):  # timm keeps the stages above, too
            network.blocks = network.blocks[: max(stages)]
        self.num_features: int = network.feature_info.channels()[-1]
        self.network = network
        # to the normalisation that the network was trained with
        self.register_buffer("factor", torch.ones(3, 1, 1))
        self.register_buffer("shift", torch.zeros(3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels * self.factor + self.shift)[0]


class ImageTower(nn.Module):
    gradient_checkpointing = False

    def __init__(self, image: dict[str, Any], embed_dim: int) -> None:
        super().__init__()
        sizes = {"patch_size": "patch_size", "embed_dim": "width", "depth": "layers", "num_heads": "heads"}
        sizes |= {"act_layer": "activation"}  # timm's name of each setting, and ours
        arguments = image["options"] | {name: image[key] for name, key in sizes.items() if image[key] is not None}
        if image.get("stem") is not None:
            name, stride = image["stem"], image["stem_stride"]
            arguments |= {
                "patch_size": image.get("stem_cells", 1),
                "embed_layer": partial(
                    HybridEmbed,
                    backbone=Stem(name, stride),
                    feature_size=image["image_size"] // stride,
                    feature_ratio=stride,
                ),
            }
        trunk: Any = timm.create_model(
            image["timm"], img_size=image["image_size"], num_classes=0, global_pool="", **arguments
        )
        self.trunk = trunk
        self.projection = nn.Linear(trunk.embed_dim, embed_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        self.trunk.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        return self.projection(self.trunk(pixels))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = QuickGELU() if activation == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class TextTower(nn.Module):
    """Causal text encoder: tokens after [EOS] change nothing before it, so padding needs no mask here.

    With ``token_rows`` in its configuration, tokens with an embedding of zeros share its last row.
    """

    gradient_checkpointing = False
    row_of_token: Tensor

    def __init__(self, text: dict[str, Any], embed_dim: int) -> None:
        super().__init__()
        width = text["width"]
        self.cut = bool(text.get("token_rows"))
        self.token_embedding = nn.Embedding(text.get("token_rows") or text["vocab_size"], width)
        if self.cut:
            self.register_buffer("row_of_token", torch.zeros(text["vocab_size"], dtype=torch.int32))
        self.pos_embed = nn.Parameter(torch.zeros(text["context_length"], width))
        self.blocks = nn.ModuleList(Block(width, text["heads"], text["activation"]) for _ in range(text["layers"]))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, embed_dim, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token_embedding(self.row_of_token[ids] if self.cut else ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            again = self.gradient_checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return self.projection(self.norm(x))


class Pooling(nn.Module):
    """The mean of the tokens ``[b, n, d]`` where ``mask [b, n]`` is 1, weighted by a learned query if there is one.

    With heads, the means by several queries, each projected, concatenated: ``[b, heads * d]``. With relu and bilinear,
    the mean of rectified features of each token, or of the products of its two projections.
    """

    def __init__(self, width: int, pooling: str, heads: int) -> None:
        super().__init__()
        several = pooling == "heads"
        size = (heads, width) if several else width
        self.query = nn.Parameter(torch.zeros(size)) if several or pooling == "attention" else None
        self.heads = nn.Parameter(torch.zeros(heads, width, width)) if several else None
        rows = {"relu": heads * width, "bilinear": 2 * math.isqrt(heads * width)}.get(pooling)
        self.features = None if rows is None else nn.Parameter(torch.zeros(rows, width))
        self.rectified = pooling == "relu"

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        weights = mask.to(tokens.dtype).unsqueeze(-1)
        if self.features is not None:
            tokens = F.linear(tokens, self.features)
            first, second = tokens.chunk(2, -1)
            tokens = tokens.relu() if self.rectified else (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)
        if self.query is not None:
            scores = tokens @ self.query.view(-1, tokens.shape[2]).T * tokens.shape[2] ** -0.5
            weights = scores.masked_fill(weights == 0, torch.finfo(scores.dtype).min).softmax(1)
        pooled = weights.transpose(1, 2) @ tokens
        return (pooled if self.heads is None else torch.einsum("bkd,kde->bke", pooled, self.heads)).flatten(1)


class Towers(nn.Module):
    """Both towers. config: FILIP's model configuration as a plain dict."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.pooled = config["interaction"] == "pooled"
        self.cls_in_interaction = config["cls_in_interaction"]
        self.image = ImageTower(config["image"], config["embed_dim"])
        self.text = TextTower(config["text"], config["embed_dim"])
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.image_pool: nn.Module | None = None
        self.text_pool: nn.Module | None = None
        if config["pooling"] != "ends":
            sizes = config["embed_dim"], config["pooling"], config["pool_queries"]
            self.image_pool, self.text_pool = Pooling(*sizes), Pooling(*sizes)

    def gradient_checkpointing_enable(self, *_: Any, **__: Any) -> None:
        """Compute blocks again in the backward pass; sentence-transformers calls this, transformers sets the fields."""
        self.image.gradient_checkpointing = self.text.gradient_checkpointing = True

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode ``[b, 3, S, S]`` to ``[b, n1, d]``, patches row by row, or ``[b, d]`` for a pooled model."""
        tokens = self.image(pixels)
        if self.pooled and self.image_pool is None:
            return _unit(tokens[:, 0])
        patches = tokens[:, self.image.trunk.num_prefix_tokens :]
        if self.pooled and self.image_pool is not None:
            return _unit(self.image_pool(patches, torch.ones_like(patches[:, :, 0])))
        if self.cls_in_interaction:
            patches = torch.cat([tokens[:, :1], patches], dim=1)
        return _unit(patches)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode ids ``[b, n2]`` int64 to ``[b, n2, d]``, or ``[b, d]`` for a pooled model.

        mask ``[b, n2]`` is 1 up to [EOS]; tokens after it become 0.
        """
        tokens = self.text(ids)
        if self.pooled and self.text_pool is not None:
            return _unit(self.text_pool(tokens, mask))
        if self.pooled:
            last = mask.to(torch.int64).sum(1) - 1
            return _unit(tokens.gather(1, last[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0])
        return _unit(tokens) * mask.unsqueeze(-1)

    def logits(self, image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled similarities per image ``[b1, b2]`` and per text ``[b2, b1]`` of encoded tokens.

        mask ``[b2, n2]``: true where a text has a token; a pooled model does not look at it.
        """
        scale = self.logit_scale.float().exp()
        if self.pooled:
            per_image = scale * (image @ text.T)
            return per_image, per_image.T
        i2t, t2i = late_interaction(image, text, mask)
        return scale * i2t, scale * t2i.T


def late_interaction(image: Tensor, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return FILIP's similarities ``[b1, b2]``, image to text and text to image.

    image: ``[b1, n1, d]``. text: ``[b2, n2, d]`` with mask ``[b2, n2]``.
    """
    cosines = torch.einsum("ipd,tnd->itpn", image, text)
    padding = ~mask.bool()[None, :, None]
    i2t = cosines.masked_fill(padding, -torch.inf).amax(3).mean(2)
    t2i = (cosines.amax(2) * mask).sum(2) / mask.sum(1)
    return i2t, t2i


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)
