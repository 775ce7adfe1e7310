"""Folders of sentence-transformers that hold a ``MultiVectorEncoder`` of images and texts, such as our own exports."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from filip.common.errors import UserError, first_line
from filip.eval.encoders import Loading, autocast
from filip.eval.encoders.two_tower import NOT_LOADED, complete, tells_words_apart
from filip.text.json_tokenizer import readable_token

PROBES = ((64, 64), (128, 64), (1500, 1000))  # pixels of pictures that show whether the number of tokens differs


class MultiVectorEncoder:
    """A model that is token-wise by nature: an image is a document of it, a text a query.

    A model that makes squares of pictures takes them in batches; another (``image_size`` 0), such as a ColQwen2, takes
    one picture at a time, by its own ``encode_document``.

    folder: what sentence-transformers saved, or a name on the hub. Raises UserError if it cannot be loaded, and if its
    folder holds code that ``loading.trust_remote_code`` does not allow to run.
    """

    def __init__(self, folder: str, loading: Loading) -> None:
        try:
            from sentence_transformers import MultiVectorEncoder as Loaded
        except ImportError as error:
            raise UserError("mv: models need `pip install 'sentence-transformers>=6'`") from error
        code = any(Path(folder).glob("*.py"))
        if code and not loading.trust_remote_code:
            raise UserError(f"{folder} holds its own code; add trust_remote_code=true if you trust it")
        with complete(f"mv:{folder}"):
            model = Loaded(folder, device=loading.device, trust_remote_code=loading.trust_remote_code)
        if "image" not in model.modalities:
            raise UserError(f"mv:{folder} encodes no images")
        self.model: Any = model
        self.name = f"mv {Path(folder).name}"
        self.device, self.dtype, self.token_wise = loading.device, loading.dtype, True
        self.family = "retriever"
        self.details: dict[str, str] = {}
        self.context_length = int(model.max_seq_length or 0)
        first, *others = [_preprocessed(model, Image.new("RGB", size)) for size in PROBES]
        squares = all(_same(first, other) for other in others)
        self.image_size = int(first["pixel_values"].shape[-1]) if squares else 0
        if loading.image_size not in (None, self.image_size):
            raise UserError("image_size= cannot be changed for a MultiVectorEncoder: its own code resizes images")
        self.transform: Callable[[Image.Image], Tensor] = _Pixels(model) if squares else _whole
        # ColPali reads its pictures with a prompt, the same for all.
        self.further: dict[str, Any] = {name: value for name, value in first.items() if name != "pixel_values"}
        # With [CLS] or other tokens among the patches nobody knows which are which: there is nothing to point at.
        count = self.encode_images(first["pixel_values"]).shape[1] if squares else 0
        side = math.isqrt(count)
        self.grid = (side, side) if side * side == count else (0, 0)
        lengths = model.encode_document([Image.new("RGB", PROBES[0])], show_progress_bar=False)[0].float().norm(dim=-1)
        if not bool(torch.isclose(lengths, torch.ones_like(lengths), atol=0.01).all()):
            raise UserError(
                f"the tokens of mv:{folder} have lengths up to {lengths.max():.3g} instead of 1; add Normalize"
            )

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> MultiVectorEncoder:
        try:
            encoder = cls(name, loading)
        except NOT_LOADED as error:  # in loading, or in the first pass
            raise UserError(f"sentence-transformers cannot load mv:{name}: {first_line(error)}") from error
        tells_words_apart(encoder)
        return encoder

    @torch.inference_mode()
    def encode_images(self, pixels: Any) -> Tensor:
        with autocast(self.device, self.dtype):
            if not self.image_size:
                images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pixels]
                # one at a time: some processors take a batch of pictures for those of one document
                tokens = [self.model.encode_document([image], show_progress_bar=False)[0].float() for image in images]
                return pad_sequence([F.normalize(of_image, dim=-1) for of_image in tokens], batch_first=True)
            made = {name: _repeated(value, len(pixels), self.device) for name, value in self.further.items()}
            output = self.model({"pixel_values": pixels.to(self.device), **made})
        mask = output["attention_mask"].bool()
        return F.normalize(output["token_embeddings"].float(), dim=-1)[:, mask[0]]

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        vectors: list[Tensor] = self.model.encode_query(list(texts), show_progress_bar=False)
        lengths = torch.tensor([len(one) for one in vectors])
        return F.normalize(torch.cat(vectors).float(), dim=-1), lengths

    def probe_features(self, pixels: Any) -> Tensor:
        tokens = self.encode_images(pixels)
        return (tokens.sum(1) / tokens.any(-1).sum(1, keepdim=True)).cpu()

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


def _preprocessed(model: Any, image: Image.Image) -> dict[str, Any]:
    return dict(model.preprocess([image.convert("RGB")]))


def _same(first: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two pictures have pixels of the same shape and the same other inputs."""
    pixels = first["pixel_values"]
    if pixels.ndim != 4 or pixels.shape != other["pixel_values"].shape or first.keys() != other.keys():
        return False
    others = [name for name, value in first.items() if isinstance(value, Tensor) and name != "pixel_values"]
    return all(torch.equal(first[name], other[name]) for name in others)


class _Pixels:
    """The model's own preprocessing as a function of one image. A class, so that it reaches processes that decode."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, image: Image.Image) -> Tensor:
        return _preprocessed(self.model, image)["pixel_values"][0]


def _whole(image: Image.Image) -> Tensor:
    """Return a picture as it is: uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _repeated(value: Any, count: int, device: str) -> Any:
    """Return what belongs to one image for so many."""
    return value.expand(count, *value.shape[1:]).to(device) if isinstance(value, Tensor) else value
