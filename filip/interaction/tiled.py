"""Pure PyTorch on any device: one tile of the similarity at a time, arg-max indices kept, nothing else."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from filip.interaction.packed import accumulation_dtype, offsets_of


class Kept(NamedTuple):
    image_argmax: Tensor
    text_argmax: Tensor


def forward(image_tokens: Tensor, text_tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, Kept]:
    b, n1, _ = image_tokens.shape
    wide = accumulation_dtype(image_tokens.dtype)
    offsets = offsets_of(lengths)
    i2t = image_tokens.new_empty(b, len(lengths), dtype=wide)
    t2i = torch.empty_like(i2t)
    image_argmax = image_tokens.new_empty(b, len(lengths), n1, dtype=torch.int16)
    text_argmax = image_tokens.new_empty(b, offsets[-1], dtype=torch.int16)
    images = image_tokens.to(wide)
    for j, text in enumerate(text_tokens.to(wide).split(lengths)):
        tile = images @ text.T
        values, index = tile.max(dim=2)
        i2t[:, j] = values.mean(1)
        image_argmax[:, j] = index
        values, index = tile.max(dim=1)
        t2i[:, j] = values.mean(1)
        text_argmax[:, offsets[j] : offsets[j + 1]] = index
    return i2t, t2i, Kept(image_argmax, text_argmax)


def backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    kept: Kept,
) -> tuple[Tensor, Tensor]:
    b, n1, d = image_tokens.shape
    wide = accumulation_dtype(image_tokens.dtype)
    offsets = offsets_of(lengths)
    images = image_tokens.to(wide)
    grad_images = torch.zeros_like(images)
    grad_texts = torch.zeros_like(text_tokens, dtype=wide)
    rows = torch.arange(b, device=images.device)[:, None] * n1
    for j, text in enumerate(text_tokens.to(wide).split(lengths)):
        length = lengths[j]
        span = slice(offsets[j], offsets[j + 1])
        to_text = kept.image_argmax[:, j].long()
        to_image = kept.text_argmax[:, span].long()
        dense = images.new_zeros(b, n1, length)
        dense.scatter_(2, to_text[:, :, None], (grad_i2t[:, j] / n1)[:, None, None].expand(b, n1, 1))
        dense.scatter_add_(
            1, to_image[:, None], (grad_t2i[:, j] / length)[:, None, None].expand(b, 1, length)
        )
        grad_images += dense @ text
        grad_texts[span] = dense.view(b * n1, length).T @ images.view(b * n1, d)
    del rows
    return grad_images, grad_texts
