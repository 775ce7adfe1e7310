"""Models of transformers, from a folder or the hub, with their own tokenizer and transform."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from filip.cli.extras import how_to_install
from filip.common.errors import UserError, first_line
from filip.eval.encoders import Loading
from filip.eval.encoders.two_tower import NOT_LOADED, TwoTowerEncoder, complete, one_by_one, tells_words_apart
from filip.text.json_tokenizer import readable_token

# SigLIP 2 of a fixed resolution is a SigLIP with another tokenizer, MetaCLIP 2 a CLIP with another.
KINDS = ("clip", "metaclip_2", "siglip")


class HuggingFaceEncoder(TwoTowerEncoder):
    """A model of transformers. where: a folder or a repository of the hub.

    Raises UserError for a name that cannot be loaded and for another kind of model.
    """

    def __init__(self, where: str, loading: Loading) -> None:
        try:
            from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise UserError(f"hf: models need transformers: {how_to_install('photos')}") from error
        try:
            config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        except (OSError, ValueError) as error:
            offline = (
                "" if os.path.isabs(where) else f"; without a network: `hf download {where}` elsewhere, hf:FOLDER here"
            )
            raise UserError(f"transformers cannot load hf:{where}: {first_line(error)}{offline}") from error
        if config.model_type not in KINDS:
            raise UserError(f"hf:{where} is a {config.model_type!r}, and hf: takes {', '.join(KINDS)}")
        try:
            with complete(f"hf:{where}"):
                model = AutoModel.from_pretrained(where, dtype=torch.float32)
            # Pillow's resizing, with which the models were trained and published, not torchvision's.
            processor = AutoImageProcessor.from_pretrained(where, backend="pil")
            tokenizer = AutoTokenizer.from_pretrained(where)
        except NOT_LOADED as error:
            raise UserError(f"transformers cannot load hf:{where}: {first_line(error)}") from error
        self.siglip = config.model_type == "siglip"
        super().__init__(f"hf {where}", loading, "siglip" if self.siglip else "clip")
        self.model = model.eval().to(loading.device)
        self.tokenizer: Any = tokenizer
        self.context_length = int(config.text_config.max_position_embeddings)
        patch = int(config.vision_config.patch_size)
        own_size = config.vision_config.image_size
        self.image_size = loading.image_size or own_size
        if self.image_size % patch:
            raise UserError(f"image_size={self.image_size} is not a multiple of the model's patches of {patch}")
        self.interpolate = self.image_size != own_size
        self.grid = (self.image_size // patch,) * 2
        self.transform: Callable[[Image.Image], Tensor] = _Transform(processor, self.image_size, self.interpolate)

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> HuggingFaceEncoder:
        encoder = cls(name, loading)
        tells_words_apart(encoder)
        return encoder

    def image_vectors(self, pixels: Tensor) -> Tensor:
        pooled = self._see(pixels).pooler_output
        return pooled if self.siglip else self.model.visual_projection(pooled)

    def image_tokens(self, pixels: Tensor) -> Tensor:
        tower = self.model.vision_model
        states = self._see(pixels).last_hidden_state
        if self.siglip:
            return one_by_one(tower.head, states)
        return self.model.visual_projection(tower.post_layernorm(states[:, 1:]))  # without [CLS]

    def _see(self, pixels: Tensor) -> Any:
        return self.model.vision_model(pixels, interpolate_pos_encoding=self.interpolate)

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(
            list(texts),
            padding="max_length" if self.siglip else True,  # which it was trained to read
            truncation=True,
            max_length=self.context_length,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return encoded["input_ids"], encoded["attention_mask"].sum(1).clamp(min=1)

    def text_vectors(self, ids: Tensor) -> Tensor:
        # CLIP's mask is causal: padding behind the text changes nothing
        pooled = self.model.text_model(ids).pooler_output
        return pooled if self.siglip else self.model.text_projection(pooled)

    def text_tokens(self, ids: Tensor) -> Tensor:
        states = self.model.text_model(ids).last_hidden_state
        return self.model.text_model.head(states) if self.siglip else self.model.text_projection(states)

    def tokens(self, text: str) -> list[str]:
        ids, lengths = self.token_ids([text])
        valid = ids[0, : int(lengths[0])].tolist()
        return [readable_token(token) for token in self.tokenizer.convert_ids_to_tokens(valid)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.tokenizer(list(texts))["input_ids"]]


class _Transform:
    """A processor as a function of one image. A class, so that it reaches the processes that decode."""

    def __init__(self, processor: Any, size: int, changed: bool) -> None:
        self.processor, self.size, self.changed = processor, size, changed

    def __call__(self, image: Image.Image) -> Tensor:
        sizes: dict[str, Any] = {}
        if self.changed:
            square = {"height": self.size, "width": self.size}
            crops = getattr(self.processor, "do_center_crop", False)
            sizes = {"size": {"shortest_edge": self.size}, "crop_size": square} if crops else {"size": square}
        pixels: Tensor = self.processor(images=image.convert("RGB"), return_tensors="pt", **sizes)["pixel_values"]
        return pixels[0]
