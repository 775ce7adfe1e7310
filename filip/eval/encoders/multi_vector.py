"""Folders of sentence-transformers that hold a ``MultiVectorEncoder`` of images and texts, such as our own exports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.errors import UserError, first_line
from filip.eval.encoders import Loading
from filip.eval.half_precision import autocast
from filip.hub import hub_asked
from filip.json_tokenizer import readable_token


class MultiVectorEncoder:
    """A model that is token-wise by nature: an image is a document of it, a text a query.

    folder: what sentence-transformers saved, or a name on the hub. Raises UserError if it cannot be loaded, and if its
    folder holds code that ``loading.trust_remote_code`` does not allow to run.
    """

    def __init__(self, folder: str, loading: Loading) -> None:
        try:
            from sentence_transformers import MultiVectorEncoder as Loaded
        except ImportError as error:
            raise UserError("mv: models need `pip install 'sentence-transformers>=6'`") from error
        if loading.image_size is not None:
            raise UserError("image_size= cannot be changed for a MultiVectorEncoder: its own code resizes images")
        code = any(Path(folder).glob("*.py"))
        if code and not loading.trust_remote_code:
            raise UserError(f"{folder} holds its own code; add trust_remote_code=true if you trust it")
        try:
            model = Loaded(folder, device=loading.device, trust_remote_code=loading.trust_remote_code)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"sentence-transformers cannot load mv:{folder}: {first_line(error)}") from error
        if "image" not in model.modalities:
            raise UserError(f"mv:{folder} encodes no images")
        self.model: Any = model
        self.name = f"mv {Path(folder).name}"
        self.device, self.dtype, self.token_wise = loading.device, loading.dtype, True
        self.family = "filip"
        self.details: dict[str, str] = {}
        self.context_length = int(model.max_seq_length or 0)
        # ColPali reads its pictures with a prompt, the same for all.
        further = model.preprocess([Image.new("RGB", (64, 64))])
        pixels = further.pop("pixel_values")[0]
        self.further: dict[str, Any] = further
        self.transform: Callable[[Image.Image], Tensor] = _Preprocess(model, further)
        with torch.inference_mode():
            count = self.encode_images(pixels[None]).shape[1]
        self.image_size = int(pixels.shape[-1])
        # With [CLS] or other tokens among the patches nobody says which are which: there is nothing to point at.
        side = math.isqrt(count)
        self.grid = (side, side) if side * side == count else (0, 0)

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> MultiVectorEncoder:
        with hub_asked(local=Path(name).is_dir()):
            return cls(name, loading)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        with autocast(self.device, self.dtype):
            made = {name: _repeated(value, len(pixels), self.device) for name, value in self.further.items()}
            found = self.model({"pixel_values": pixels.to(self.device), **made})
        kept = found["attention_mask"].bool()
        if not bool((kept == kept[0]).all()):
            raise UserError(f"{self.name} gives its images different numbers of tokens, which is not supported here")
        return F.normalize(found["token_embeddings"][:, kept[0]].float(), dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        vectors: list[Tensor] = self.model.encode_query(list(texts), show_progress_bar=False)
        lengths = torch.tensor([len(one) for one in vectors])
        return F.normalize(torch.cat(vectors).float(), dim=-1), lengths

    def probe_features(self, pixels: Tensor) -> Tensor:
        return self.encode_images(pixels).mean(1).cpu()

    def image_and_probe(self, pixels: Tensor) -> tuple[Tensor, Tensor] | None:
        tokens = self.encode_images(pixels)
        return tokens, tokens.mean(1).cpu()

    def patches(self, pixels: Tensor) -> Tensor:
        if self.grid == (0, 0):
            raise UserError(f"{self.name}: its image tokens are not a square of patches, so they have no places")
        return self.encode_images(pixels).cpu()

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        vectors, lengths = self.encode_texts(texts)
        assert lengths is not None
        return list(vectors.cpu().split(lengths.tolist()))

    def tokens(self, text: str) -> list[str]:
        ids = self.model.preprocess([text])["input_ids"][0].tolist()
        return [readable_token(token) for token in self.model.tokenizer.convert_ids_to_tokens(ids)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self.model.tokenizer(list(texts))["input_ids"]]


class _Preprocess:
    """The model's own preprocessing as a function of one image. A class, so that it reaches processes that decode.

    further: what it gives to the model with the pixels of any image.
    """

    def __init__(self, model: Any, further: dict[str, Any]) -> None:
        self.model, self.further = model, further

    def __call__(self, image: Image.Image) -> Tensor:
        made = self.model.preprocess([image.convert("RGB")])
        pixels: Tensor = made.pop("pixel_values")[0]
        tensors = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        if own := [name for name, value in tensors.items() if not torch.equal(value, self.further[name])]:
            raise UserError(
                f"this MultiVectorEncoder turns an image into {', '.join(sorted(own))} of its own as well as pixels, "
                "and only its own methods can use these"
            )
        return pixels


def _repeated(value: Any, count: int, device: str) -> Any:
    """Return what belongs to one image for so many."""
    return value.expand(count, *value.shape[1:]).to(device) if isinstance(value, Tensor) else value
