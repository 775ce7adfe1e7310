"""Images with different numbers of tokens: padded to a rectangle, with a mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from filip.interaction.packing import Similarity


def check_mask(image_tokens: Tensor, image_mask: Tensor) -> None:
    """Raise ValueError unless ``image_mask`` is boolean [images, n1] with a token in every image."""
    if image_mask.shape != image_tokens.shape[:2] or image_mask.dtype != torch.bool:
        raise ValueError(
            f"image_mask must be boolean [images, n1] = {list(image_tokens.shape[:2])}, got {image_mask.dtype} "
            f"{list(image_mask.shape)}"
        )
    if not torch.compiler.is_compiling() and not bool(image_mask.any(dim=1).all()):
        raise ValueError("image_mask leaves an image without a token")


def with_mask(score: Callable[[Tensor], Similarity], image_tokens: Tensor, image_mask: Tensor) -> Similarity:
    """``score`` of the tokens where ``image_mask`` [images, n1] is true, whatever the others hold, NaN included.

    i2t sums over image tokens, and a zero adds nothing to the sum. But a zero may be the largest of negative numbers,
    so for t2i the padding repeats the image's first token instead, which changes no maximum. Hence two calls.
    """
    zeroed = torch.where(image_mask[..., None], image_tokens, torch.zeros_like(image_tokens))
    first = image_mask.int().argmax(dim=1)
    firsts = image_tokens[torch.arange(len(first), device=first.device), first]
    repeated = torch.where(image_mask[..., None], image_tokens, firsts[:, None])
    i2t = score(zeroed).i2t
    share = image_mask.sum(dim=1) / image_mask.shape[1]
    return Similarity(i2t / share.to(i2t.dtype)[:, None], score(repeated).t2i)
