"""Reduce an image's patches to a few learned tokens, as Wukong does in place of choosing some of them."""

from __future__ import annotations

from torch import Tensor, nn

from filip.common.errors import UserError

GROUPS = 8  # of channels, in two of its three maps


class TokenReduction(nn.Module):
    """Learned means of projected patches (Gu et al. 2022, arXiv 2202.06767; its model Wukong has 12 or 24 of them).

    ``forward(patches [b, n, d])`` returns ``[b, k, d]``, not normalised: z_t = sum_i A_ti (W_f x_i), where A_t is the
    soft-max over the patches i of w_t . W_a LayerNorm(x_i). W_a and W_f are block-diagonal, of 8 blocks; no map has a
    bias. UserError unless ``d`` is a multiple of 8.
    """

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        if width % GROUPS:
            raise UserError(f"model.reduction maps {GROUPS} groups of channels: model.embed_dim={width} has a rest")
        self.norm = nn.LayerNorm(width)
        self.key = nn.Conv1d(width, width, 1, groups=GROUPS, bias=False)
        self.query = nn.Conv1d(width, tokens, 1, bias=False)
        self.value = nn.Conv1d(width, width, 1, groups=GROUPS, bias=False)
        for layer in (self.key, self.query, self.value):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")  # as theirs: the tokens differ from the start

    def forward(self, patches: Tensor) -> Tensor:
        attention = self.query(self.key(self.norm(patches).transpose(1, 2))).float().softmax(-1)
        values = self.value(patches.transpose(1, 2))
        return attention.to(values.dtype) @ values.transpose(1, 2)
