"""Prepare FILIP's inputs for transformers: ``AutoProcessor.from_pretrained(folder, trust_remote_code=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from .filip_inputs import clean, to_pixels


class FilipImageProcessor(BaseImageProcessor):
    """Processor of images (PIL, 8-bit array or tensor, path, URL) to float32 ``pixel_values [b, 3, size, size]``."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 (an instance variable of the base class)

    def __init__(self, size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def preprocess(
        self, images: Any, return_tensors: str | None = "pt", size: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare images. size: if not the model's, for towers that interpolate positions. Nothing else can be set.

        size is a number, or a dict of transformers: {"height": 224, "width": 224} or {"shortest_edge": 224}.
        """
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: FILIP's images are prepared in one way; only size can be given")
        if isinstance(size, dict):
            size = size.get("shortest_edge", size.get("height"))
        prepared = [to_pixels(_picture(image), size or self.size) for image in _flat(images)]
        pixels = torch.from_numpy(np.stack(prepared))
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)


def _flat(images: Any) -> list[Any]:
    """Yield one image, or each of a list or of a batch in an array."""
    if isinstance(images, np.ndarray | torch.Tensor):
        return list(images) if images.ndim == 4 else [images]
    return list(images) if isinstance(images, list | tuple) else [images]


def _picture(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray | torch.Tensor):
        return to_pil_image(image)
    if isinstance(image, PathLike):
        image = str(image)
    if isinstance(image, str):
        # transformers would put transparency onto black
        return Image.open(image) if Path(image).is_file() else load_image(image)
    return image


class FilipProcessor(ProcessorMixin):
    """Processor of images and texts. Texts are cleaned as in FILIP's training, which the bare tokenizer does not do."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        size: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Return ``pixel_values`` for images, ``input_ids`` and ``attention_mask`` for texts.

        size: of the images. Other settings go to the tokenizer: padding, truncation, max_length, …
        """
        found: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else text
            given = {"padding": True, "truncation": True, "return_tensors": return_tensors, **kwargs}
            found |= self.tokenizer([clean(one) for one in texts], **given)
        if images is not None:
            others = kwargs if text is None else {}  # which it refuses
            found |= self.image_processor.preprocess(images, return_tensors=return_tensors, size=size, **others)
        return BatchFeature(found)
