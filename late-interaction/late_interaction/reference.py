"""Compute the equation as the paper writes it, one text at a time: slow, but the oracle of every other backend.

    s^I[i, j] = 1/n1   sum_k  max_r  f_i[k] . g_j[r]      (mean over image tokens of the best text token)
    s^T[i, j] = 1/n2_j sum_k  max_r  f_i[r] . g_j[k]      (mean over text tokens of the best image token)

arXiv 2111.07783, equations 3 to 5. Ties: ``Tensor.max(dim)`` returns the lowest index and sends the whole
gradient there, which is the rule for every backend.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from late_interaction.packing import Pair, Residuals, Tokens, accumulation_dtype


def late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    image_lengths: list[int] | None = None,
    temperature: float = 0.0,
) -> Pair:
    """Return s^I and s^T [images, texts] from ``image_tokens`` [b, n1, d] and packed ``text_tokens`` [T, d].

    With ``image_lengths`` the images are packed, too. With a ``temperature`` the maximum is the smooth one.
    """
    if image_lengths is not None:
        parts = image_tokens.split(image_lengths)
        alone = (late_interaction(part[None], text_tokens, lengths, None, temperature) for part in parts)
        i2t_rows, t2i_rows = zip(*alone, strict=True)
        return torch.cat(i2t_rows), torch.cat(t2i_rows)
    wide = accumulation_dtype(image_tokens.dtype)
    images = image_tokens.to(wide)

    def maximum(similarity: Tensor, dim: int) -> Tensor:
        if not temperature:
            return similarity.max(dim=dim).values
        return temperature * (torch.logsumexp(similarity / temperature, dim) - math.log(similarity.shape[dim]))

    i2t, t2i = [], []
    for text in text_tokens.to(wide).split(lengths):
        similarity = images @ text.T  # [b, n1, n2_j]
        i2t.append(maximum(similarity, 2).mean(dim=1))
        t2i.append(maximum(similarity, 1).mean(dim=1))
    return torch.stack(i2t, dim=1), torch.stack(t2i, dim=1)


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Compute as any backend does; keep nothing, since ``backward`` starts again."""
    with torch.no_grad():
        return late_interaction(*tokens[:5]), ()


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return the gradients of both inputs by PyTorch's own differentiation of the equation."""
    wide = accumulation_dtype(tokens.image.dtype)
    sides = [side.detach().to(wide) for side in (tokens.image, tokens.text)]
    # Autograd records nothing inside an operator; vjp differentiates all the same.
    gradients = torch.func.vjp(lambda image, text: late_interaction(image, text, *tokens[2:5]), *sides)[1](tuple(grads))
    none = sides[0].new_empty(0)
    return gradients[0] if needs[0] else none, gradients[1] if needs[1] else none
