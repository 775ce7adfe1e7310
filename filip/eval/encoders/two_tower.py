"""Share the code of encoders for models of other projects: pooled vectors, and on request a vector per patch and word.

Token-wise (``tokens=true``) every patch and word goes through what makes the model's pooled vector of the pooled token:
the last norm and the projection, or, in a model that pools by attention, the pooling head with that one token to attend
to. This is how a frozen CLIP is scored as if it were a FILIP, and the baseline that a token-wise training has to beat.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from filip.common.errors import UserError
from filip.eval.encoders import OWN_PROJECTIONS, Encoder, Loading, autocast
from late_interaction.packing import pack_tokens

COMMON_WORDS = ("cat", "red", "the", "a", "house", "two")
NOT_LOADED = (OSError, ValueError, ImportError, RuntimeError, KeyError, SafetensorError)  # by folders that do not fit


@contextmanager
def complete(name: str) -> Iterator[None]:
    """Raise UserError if transformers loads a model in this block that lacks weights.

    It draws them anew and goes on. Its report of them is in the log alone where another library calls it.
    """
    reports: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("transformers.modeling_utils")
    handler.emit = lambda record: reports.append(record.getMessage())  # type: ignore[method-assign]
    level, passed_on = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = passed_on
    missing = re.findall(r"^(\S+)\s*\|\s*(?:\x1b\[\d+m)?(?:MISSING|MISMATCH)", "\n".join(reports), re.MULTILINE)
    if missing:
        raise UserError(
            f"{name} lacks weights that its configuration asks for, such as {missing[0]} ({len(missing)} kinds in "
            "all); fetch or export it again"
        )


def tells_words_apart(encoder: Encoder) -> None:
    """Raise UserError for a model that reads common words alike.

    Without its files a tokenizer of transformers is an empty one, which has one token for all words.
    """
    if len({frozenset(encoder.tokens(word)) for word in COMMON_WORDS}) == 1:
        raise UserError(
            f"{encoder.name} reads {' and '.join(COMMON_WORDS[:2])!r} as the same tokens: its vocabulary is missing or "
            "damaged; fetch its tokenizer again"
        )


class TwoTowerEncoder:
    """An implementation of :class:`filip.eval.encoders.Encoder` but for ``tokens`` and ``token_counts``.

    It rests on five methods of a subclass, the last ones below.
    ``grid`` is (0, 0) for an image tower without patch tokens; asking for them is then a UserError.
    """

    name: str
    family: str
    model: Any
    image_size: int
    context_length: int
    grid: tuple[int, int]
    transform: Callable[[Image.Image], Tensor]

    def __init__(self, name: str, loading: Loading, family: str = "clip") -> None:
        self.name, self.family = name, family
        self.device, self.dtype, self.token_wise = loading.device, loading.dtype, loading.tokens
        self.details: dict[str, str] = {"tokens": OWN_PROJECTIONS} if loading.tokens else {}

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        if self.token_wise:
            return self._unit_patches(pixels)
        with autocast(self.device, self.dtype):
            vectors = self.image_vectors(pixels.to(self.device))
        return F.normalize(vectors.float(), dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        if self.token_wise:
            return self._unit_words(texts)
        ids, _ = self.token_ids(texts)
        with autocast(self.device, self.dtype):
            vectors = self.text_vectors(ids.to(self.device))
        return F.normalize(vectors.float(), dim=-1), None

    @torch.inference_mode()
    def probe_features(self, pixels: Tensor) -> Tensor:
        # One vector per image, whatever the tower, as in CLIP_benchmark's probes.
        with autocast(self.device, self.dtype):
            return self.image_vectors(pixels.to(self.device)).float().cpu()

    def patches(self, pixels: Tensor) -> Tensor:
        return self._unit_patches(pixels).cpu()

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        vectors, lengths = self._unit_words(texts)
        return list(vectors.cpu().split(lengths.tolist()))

    @torch.inference_mode()
    def _unit_patches(self, pixels: Tensor) -> Tensor:
        if self.grid == (0, 0):
            raise UserError(
                f"{self.name} has no grid of patch tokens: its image tower is not a vision transformer of one size"
            )
        with autocast(self.device, self.dtype):
            return F.normalize(self.image_tokens(pixels.to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def _unit_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, lengths = self.token_ids(texts)
        with autocast(self.device, self.dtype):
            tokens = self.text_tokens(ids.to(self.device))
        lengths = lengths.to(self.device)
        return F.normalize(pack_tokens(tokens.float(), lengths), dim=-1), lengths

    # ---- in the subclass -----------------------------------------------------------------------------

    def image_vectors(self, pixels: Tensor) -> Tensor:
        """Encode pixels [b, 3, H, W] -> [b, d], not normalised."""
        raise NotImplementedError

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Encode pixels [b, 3, H, W] -> a vector per patch [b, rows * columns, d], not normalised."""
        raise NotImplementedError

    def token_ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return (ids [t, n2] padded, lengths [t] int64 with the special tokens), as the text tower takes them."""
        raise NotImplementedError

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Encode ids [t, n2] -> [t, d], not normalised."""
        raise NotImplementedError

    def text_tokens(self, ids: Tensor) -> Tensor:
        """Encode ids [t, n2] -> a vector per token, padding included [t, n2, d], not normalised."""
        raise NotImplementedError


def one_by_one(head: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Give a pooling head each token alone: [b, n, w] -> [b, n, d]. Attention over one token returns its value."""
    b, n, width = tokens.shape
    return head(tokens.reshape(b * n, 1, width)).reshape(b, n, -1)
