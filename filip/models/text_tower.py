"""Define the text encoder: GPT-2 style, pre-norm, with CLIP's initialisation; causal as CLIP's, or as SigLIP's."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from filip.models.config import TextTowerConfig

_GELU = {"gelu": "none", "gelu_tanh": "tanh"}  # ours, torch's


class QuickGELU(nn.Module):
    """OpenAI CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class PackedLayout(NamedTuple):
    """Positions of a batch's packed tokens in its padded form."""

    rows: int  # captions, b
    columns: int  # tokens of the longest, n
    positions: Tensor  # [T] int64: row * n + column of each token

    @staticmethod
    def of(lengths: Tensor, columns: int) -> PackedLayout:
        """Return the layout of captions with ``lengths`` [b] in rows of ``columns`` tokens, on their device."""
        valid = torch.arange(columns, device=lengths.device) < lengths[:, None]
        return PackedLayout(len(lengths), columns, valid.flatten().nonzero().squeeze(1))


class Block(nn.Module):
    """Pre-norm attention and MLP on packed tokens ``[T, width]``; each token sees itself and its past, or all.

    Only the attention itself runs on padded rows. Padding comes after [EOS], where a causal model cannot see
    it, so no mask is needed; one that looks both ways has its padding among the tokens.
    """

    def __init__(self, config: TextTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.causal = config.padding is None
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        hidden = config.mlp_width or 4 * width
        self.fc1 = nn.Linear(width, hidden)
        self.act = QuickGELU() if config.activation == "quick_gelu" else nn.GELU(_GELU[config.activation])
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, layout: PackedLayout) -> Tensor:
        x = x + self.proj(self._attention(self.qkv(self.norm1(x)), layout))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    def _attention(self, qkv: Tensor, layout: PackedLayout) -> Tensor:
        b, n, positions = layout
        padded = qkv.new_zeros(b * n, qkv.shape[1]).index_copy(0, positions, qkv)
        q, k, v = padded.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return attended.transpose(1, 2).reshape(b * n, -1).index_select(0, positions)


class TextTower(nn.Module):
    """Text encoder: token ids to embeddings, not yet normalised.

    ``forward(ids [b, n] int64, lengths [b] int64)`` returns the embeddings of all tokens without padding,
    caption by caption: ``[lengths.sum(), embed_dim]``; with ``only_last`` the [EOS] tokens:
    ``[b, embed_dim]``. Padding costs nothing except in the attention product, unless the tower reads it
    (``config.padding``). ``lengths`` may stay on the host.
    """

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.context_length, self.padding = config.context_length, config.padding
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.pos_embed = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self.grad_checkpointing = False
        self._init_as_clip()

    def forward(self, ids: Tensor, lengths: Tensor, only_last: bool = False) -> Tensor:
        read_lengths = lengths
        if self.padding is not None:
            # all of one length, as a tower that reads its padding sees them
            columns = torch.arange(self.context_length, device=ids.device)
            wide = F.pad(ids, (0, self.context_length - ids.shape[1]))
            ids = wide.where(columns < lengths.to(ids.device)[:, None], self.padding)
            read_lengths = torch.full_like(lengths, self.context_length)
        # with lengths on the host nothing waits for a GPU
        rows, width, positions = PackedLayout.of(read_lengths, ids.shape[1])
        layout = PackedLayout(rows, width, positions.to(ids.device, non_blocking=True))
        columns = layout.positions % layout.columns
        x = self.token_embedding(ids.flatten()[layout.positions]) + self.pos_embed[columns]
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layout, use_reentrant=False)
            else:
                x = block(x, layout)
        if self.padding is not None:
            x = x[PackedLayout.of(lengths, width).positions.to(x.device)]
        if only_last:
            x = x[lengths.cumsum(0) - 1]
        return self.projection(self.norm(x))

    @torch.no_grad()
    def _init_as_clip(self) -> None:
        """Initialise as CLIP: GPT-2's scaling of the residual branches with the depth; torch's biases in the MLP."""
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
