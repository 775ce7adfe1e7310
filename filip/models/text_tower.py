"""The text encoder: GPT-2 style, causal and pre-norm, with CLIP's sizes and initialisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from filip.models.config import TextTowerConfig


class QuickGELU(nn.Module):
    """OpenAI CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention and MLP; ``[b, n, width] -> [b, n, width]``, each token sees itself and the past."""

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = QuickGELU() if config.activation == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(b, n, width))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class TextTower(nn.Module):
    """Token ids to embeddings, not yet normalised.

    ``forward(ids [b, n] int64, positions [m] int64)`` runs the blocks on all n tokens and returns the
    embeddings ``[m, embed_dim]`` of the flat positions (row * n + column) asked for. Padding stands behind
    [EOS], where a causal model cannot see it, so no mask is needed and the last layers run on real tokens
    only.
    """

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.context_length = config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.grad_checkpointing = False
        self._init_as_clip()

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.token_embedding(ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        x = x.flatten(0, 1).index_select(0, positions)
        return self.projection(self.norm(x))

    @torch.no_grad()
    def _init_as_clip(self) -> None:
        """CLIP's: GPT-2's scaling of the residual branches with the depth; torch's biases in the MLP."""
        width, layers = self.token_embedding.embedding_dim, len(self.blocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in self.blocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.qkv.weight, std=width**-0.5)
            nn.init.normal_(block.proj.weight, std=residual_std)
            nn.init.normal_(block.fc1.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.fc2.weight, std=residual_std)
            nn.init.zeros_(block.qkv.bias)
            nn.init.zeros_(block.proj.bias)
