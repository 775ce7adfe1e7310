"""Models seen from evaluation: pixels and strings in, unit vectors or unit tokens out.

Two kinds: our own (a safetensors file of :mod:`filip.models`) and any model that open_clip can build
(:mod:`filip.eval.open_clip_encoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.device import best_device
from filip.errors import UserError


class Encoder(Protocol):
    """What a scorer needs of a model. ``token_wise``: a vector per token, not one per image or text.

    ``grid``: rows and columns of the patches; (0, 0) if the model has no ``patches``. ``details``: what else a
    result file should say of the model, such as an activation that its weights do not imply.
    """

    name: str
    token_wise: bool
    image_size: int
    grid: tuple[int, int]
    details: dict[str, str]
    transform: Callable[[Image.Image], Tensor]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """pixels [b, 3, H, W] -> [b, d], or [b, n1, d] if token-wise; float32, unit length."""

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """-> ([t, d], None), or if token-wise (packed tokens [T, d], lengths [t] int64); unit length."""

    def probe_features(self, pixels: Tensor) -> Tensor:
        """What a linear probe sees [b, width], not normalised: the mean of the encoder's patch tokens."""

    def patches(self, pixels: Tensor) -> Tensor:
        """One unit vector per image patch [b, rows * columns, d], also for a pooled model (for pictures)."""

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text as strings, [BOS] and [EOS] included."""

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        """Unit vectors of each text's tokens [n2, d], [BOS] and [EOS] included; also for a pooled model."""


def load_encoder(model: str, image_size: int | None = None, device: str = "cpu") -> Encoder:
    """A model by its name.

    model: path of a ``.safetensors`` file written by training, or ``open_clip:ARCH[:TAG]`` with one of open_clip's
    tags (whose weights it downloads; without one, its initialisation), or ``open_clip:ARCH:FILE:ACTIVATION`` with a
    local file of weights and "gelu" or "quickgelu".
    image_size: evaluate at another resolution; position embeddings are interpolated.
    device: a torch device, or "auto": a GPU where there is one.
    Raises UserError if the file, the architecture or the tag does not exist, or a file comes without its activation.
    """
    if device == "auto":
        device = str(best_device())
    if model.startswith("open_clip:"):
        from filip.eval.open_clip_encoder import OpenClipEncoder

        return OpenClipEncoder.from_name(model, image_size, device)
    if not Path(model).is_file():
        raise UserError(
            f"no model at {model}: give the .safetensors file that training wrote, "
            "or open_clip:ARCHITECTURE:WEIGHTS (e.g. open_clip:ViT-B-32:laion2b_s34b_b79k)"
        )
    from filip.models import load_model

    return FilipEncoder(load_model(model, image_size=image_size).eval().to(device), Path(model).stem, device)


class FilipEncoder:
    """A model of this project in memory: FILIP, or its CLIP baseline, as its config says.

    model: a :class:`filip.models.DualEncoder` on ``device``, in evaluation mode; a training loop may wrap the
    model it trains to see how it is doing.
    """

    def __init__(self, model: Any, name: str, device: str = "cpu"):
        from filip.data.loading.transforms import eval_transform

        self.model: Any = model
        self.name = name
        self.device = device
        self.details: dict[str, str] = {}
        self.token_wise = self.model.config.interaction == "token_wise"
        self.image_size = int(self.model.image_size)
        self.grid: tuple[int, int] = self.model.image.grid
        self.context_length = self.model.text.context_length
        self.transform: Callable[[Image.Image], Tensor] = eval_transform(self.image_size)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels.to(self.device)).float()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        from filip.tokenizer import tokenize

        ids, lengths = tokenize(list(texts), self.context_length)
        features = self.model.encode_text(ids.to(self.device), lengths.to(self.device))
        if self.token_wise:
            return features.tokens.float(), features.lengths
        return features.float(), None

    @torch.inference_mode()
    def probe_features(self, pixels: Tensor) -> Tensor:
        return self.model.image.patch_features(pixels.to(self.device)).float().mean(1).cpu()

    @torch.inference_mode()
    def patches(self, pixels: Tensor) -> Tensor:
        # The tower projects every token; training of a pooled model just ignores all but one.
        tokens = self.model.image(pixels.to(self.device))
        return F.normalize(tokens[:, self.model.image.prefix_tokens :].float(), dim=-1).cpu()

    def tokens(self, text: str) -> list[str]:
        from filip.tokenizer import decode_token, tokenize

        return [decode_token(i) for i in tokenize([text], self.context_length)[0][0].tolist()]

    @torch.inference_mode()
    def words(self, texts: Sequence[str]) -> list[Tensor]:
        from filip.tokenizer import tokenize

        ids, lengths = tokenize(list(texts), self.context_length)
        vectors = self.model.text(ids.to(self.device), lengths.to(self.device))  # every token, also if pooled
        return list(F.normalize(vectors.float(), dim=-1).cpu().split(lengths.tolist()))
