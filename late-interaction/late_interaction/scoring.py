"""Score for evaluation: large rectangular problems, no gradient, bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from late_interaction.backends import Backend, SmoothMaximum, choose_backend, run_forward, softness
from late_interaction.lengths import Lengths, offsets_of
from late_interaction.packing import Similarity, Tokens, accumulation_dtype, longest_of, pack

BLOCK_IMAGES, _BLOCK_TEXTS = 128, 256


@torch.no_grad()
def score(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_lengths: Tensor | None = None,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
    maximum: SmoothMaximum | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Similarity:
    """Compute :func:`late_interaction` without gradients, for problems such as 5,000 images x 25,010 captions.

    The arguments are late_interaction's. In addition to the two float32 results [images, texts] only one block
    of images against one block of texts is in memory at a time. ``progress`` is called with the number of
    image-text pairs that were scored since its last call.
    """
    temperature, _ = softness(maximum)
    dtype = torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    tokens = pack(image_tokens, text_tokens, text_lengths, image_mask, image_lengths, temperature).rounded(dtype)
    (count, texts), of_images = tokens.shape, tokens.image_lengths
    image_rows = list(range(count + 1)) if of_images is None else offsets_of(of_images)
    text_rows = offsets_of(tokens.lengths)
    products = tokens.image[..., 0].numel() * tokens.text.numel()
    module = choose_backend(tokens.image[:0], longest_of(tokens.lengths, of_images), backend, products)
    i2t, t2i = (torch.empty(count, texts, dtype=accumulation_dtype(dtype), device=tokens.image.device) for _ in "it")
    # On a GPU a block's products must outlast its launches; two matrices of 8 MB are a block's results there.
    larger = 1 if image_tokens.device.type == "cpu" else 8
    images_at_once, texts_at_once = larger * BLOCK_IMAGES, larger * _BLOCK_TEXTS
    if hasattr(module, "FEW_ROWS"):  # native kernels hold no products; with few texts the cost of many calls would show
        images_at_once = max(images_at_once, BLOCK_IMAGES * _BLOCK_TEXTS // texts)
    for first in range(0, texts, texts_at_once):
        last = min(first + texts_at_once, texts)
        of_texts = Lengths(tokens.lengths[first:last])
        for row in range(0, count, images_at_once):
            end = min(row + images_at_once, count)
            block = Tokens(
                tokens.image[image_rows[row] : image_rows[end]],
                tokens.text[text_rows[first] : text_rows[last]],
                of_texts,
                None if of_images is None else Lengths(of_images[row:end]),
                temperature,
            )
            i2t[row:end, first:last], t2i[row:end, first:last] = run_forward(module, block, False)[0]
            if progress is not None:
                progress((end - row) * (last - first))
    return Similarity(i2t, t2i)
