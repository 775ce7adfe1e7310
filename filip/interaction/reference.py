"""The equation as the paper writes it, one text at a time. Slow; the oracle of every other backend.

    s^I[i, j] = 1/n1   sum_k  max_r  f_i[k] . g_j[r]      (mean over image tokens of the best text token)
    s^T[i, j] = 1/n2_j sum_k  max_r  f_i[r] . g_j[k]      (mean over text tokens of the best image token)

arXiv 2111.07783, equations 3 to 5. Ties: ``Tensor.max(dim)`` returns the lowest index and sends the whole
gradient there, which is the rule for every backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from filip.interaction.packing import accumulation_dtype


def late_interaction(image_tokens: Tensor, text_tokens: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """s^I and s^T [images, texts] from ``image_tokens`` [b, n1, d] and packed ``text_tokens`` [T, d]."""
    wide = accumulation_dtype(image_tokens.dtype)
    images = image_tokens.to(wide)
    i2t, t2i = [], []
    for text in text_tokens.to(wide).split(lengths):
        similarity = images @ text.T  # [b, n1, n2_j]
        i2t.append(similarity.max(dim=2).values.mean(dim=1))
        t2i.append(similarity.max(dim=1).values.mean(dim=1))
    return torch.stack(i2t, dim=1), torch.stack(t2i, dim=1)


def forward(
    image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], save_for_backward: bool = True
) -> tuple[Tensor, Tensor, tuple[()]]:
    """Same signature as the other backends; it keeps nothing, since ``backward`` starts again."""
    with torch.no_grad():
        return *late_interaction(image_tokens, text_tokens, lengths), ()


def backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    residuals: tuple[Tensor, ...],
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs by PyTorch's own differentiation of the equation."""
    with torch.enable_grad():
        wide = accumulation_dtype(image_tokens.dtype)
        both = [
            tokens.detach().to(wide).requires_grad_(need)
            for tokens, need in zip((image_tokens, text_tokens), needs, strict=True)
        ]
        similarity = late_interaction(both[0], both[1], lengths)
        wanted = [tokens for tokens in both if tokens.requires_grad]
        found = iter(torch.autograd.grad(similarity, wanted, (grad_i2t, grad_t2i)) if wanted else ())
    none = image_tokens.new_empty(0, dtype=wide)
    return next(found) if needs[0] else none, next(found) if needs[1] else none
