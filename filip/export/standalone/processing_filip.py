"""FILIP's inputs for transformers: ``AutoProcessor.from_pretrained(folder, trust_remote_code=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from .filip_inputs import clean, to_pixels


class FilipImageProcessor(BaseImageProcessor):
    """PIL images to float32 ``pixel_values [b, 3, size, size]``."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (an instance variable of the base class)

    def __init__(self, size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def preprocess(self, images: Image.Image | Sequence[Image.Image], **kwargs: Any) -> BatchFeature:
        given = [images] if isinstance(images, Image.Image) else images
        return BatchFeature({"pixel_values": torch.stack([to_pixels(image, self.size) for image in given])})


class FilipProcessor(ProcessorMixin):
    """Images and texts together. Texts are cleaned as FILIP's training does it, which the bare tokenizer does not."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self, images: Any = None, text: str | Sequence[str] | None = None, **kwargs: Any
    ) -> BatchFeature:
        """``pixel_values`` for images, ``input_ids`` and ``attention_mask`` for texts, as torch tensors."""
        found: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            found |= self.tokenizer(
                [clean(one) for one in texts], padding=True, truncation=True, return_tensors="pt"
            )
        if images is not None:
            found |= self.image_processor.preprocess(images)
        return BatchFeature(found)
