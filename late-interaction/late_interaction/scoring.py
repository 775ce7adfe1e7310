"""Score for evaluation: large rectangular problems, no gradient, bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from late_interaction.backends import Backend, choose_backend
from late_interaction.dispatch import late_interaction
from late_interaction.lengths import offsets_of
from late_interaction.packing import Similarity, check_tokens, longest_of, pack_images

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
    progress: Callable[[int], Any] | None = None,
) -> Similarity:
    """Compute :func:`late_interaction` without gradients, for problems such as 5,000 images x 25,010 captions.

    The arguments are those of late_interaction. In addition to the two float32 results [images, texts] only one block
    of images against one block of texts is in memory at a time. ``progress`` is called with the number of
    image-text pairs that were scored since its last call.
    """
    image_tokens, image_lengths = pack_images(image_tokens, image_mask, image_lengths)
    lengths, of_images = check_tokens(image_tokens, text_tokens, text_lengths, image_lengths)
    offsets, count = offsets_of(lengths), len(of_images or image_tokens)
    image_rows = list(range(count + 1)) if of_images is None else offsets_of(of_images)
    dtype = torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    products = image_tokens[..., 0].numel() * text_tokens.numel()
    module = choose_backend(image_tokens[:0].to(dtype), longest_of(lengths, of_images), backend, products)
    i2t: Tensor | None = None
    t2i: Tensor | None = None
    # On a GPU a block's products must outlast its launches; two matrices of 8 MB are a block's results there.
    larger = 1 if image_tokens.device.type == "cpu" else 8
    images_at_once, texts_at_once = larger * BLOCK_IMAGES, larger * _BLOCK_TEXTS
    for first in range(0, len(lengths), texts_at_once):
        last = min(first + texts_at_once, len(lengths))
        texts, block_lengths = text_tokens[offsets[first] : offsets[last]], text_lengths[first:last]
        for row in range(0, count, images_at_once):
            rows = slice(row, min(row + images_at_once, count))
            block = late_interaction(
                image_tokens[image_rows[rows.start] : image_rows[rows.stop]],
                texts,
                block_lengths,
                image_lengths=None if image_lengths is None else image_lengths[rows],
                backend=module,
            )
            if i2t is None or t2i is None:
                i2t = block.i2t.new_empty(count, len(lengths))
                t2i = torch.empty_like(i2t)
            i2t[rows, first:last], t2i[rows, first:last] = block
            if progress is not None:
                progress(block.i2t.numel())
    assert i2t is not None and t2i is not None
    return Similarity(i2t, t2i)
