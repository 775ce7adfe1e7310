"""The one interface behind every table; pooled and token-wise models differ only here.

    scorer = load_scorer("results/demo/models/filip.safetensors")
    images = scorer.encode_images(pixels)
    texts = scorer.encode_texts(["a photo of a cat.", "a photo of a dog."])
    similarity = scorer.similarity(images, texts)      # .i2t and .t2i, both [images, texts]

Similarity is never pooled by accident: a token-wise model's tokens only ever meet in
:func:`late_interaction.score`, a pooled model's vectors only in a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import Progress
from filip.eval.encoders import Encoder, load_encoder
from filip.eval.text_tokens import select_tokens
from late_interaction import Similarity, pooled_similarity, score


@dataclass
class Texts:
    """Encoded texts: ``values`` [t, d] with ``lengths`` None, or packed tokens [T, d] and ``lengths`` [t] int64.

    The values stay on the model's device, the lengths on the CPU.
    """

    values: Tensor
    lengths: Tensor | None

    def __len__(self) -> int:
        return len(self.values) if self.lengths is None else len(self.lengths)

    def select(self, index: Tensor) -> Texts:
        """Return the texts at ``index`` [m] int64, in that order; entries may repeat."""
        if self.lengths is None:
            return Texts(self.values[index.to(self.values.device)], None)
        starts = self.lengths.cumsum(0) - self.lengths
        lengths = self.lengths[index]
        # Row r of text j is starts[j] + r: repeat each start, and count upwards within each text.
        within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        rows = starts[index].repeat_interleave(lengths) + within
        return Texts(self.values[rows.to(self.values.device)], lengths)

    def only(self, kept: Tensor, lengths: Tensor) -> Texts:
        """Return the texts with some of their tokens. kept: [T] bool; lengths: [t] int64, the number left of each."""
        return Texts(self.values[kept.to(self.values.device)], lengths)

    def to(self, device: str) -> Texts:
        """Return the same texts with the values on a device."""
        return Texts(self.values.to(device), self.lengths)


class Scorer:
    """The base of the two scorers: batches, progress, and each distinct text encoded once.

    Features stay where the model made them, token-wise ones in its dtype (``precision=``): only finished scores leave
    the device.
    """

    token_wise: bool
    text_tokens: str = "all"  # which tokens of a text take part, see filip.eval.text_tokens

    def __init__(self, encoder: Encoder, text_batch: int = 256):
        self.encoder = encoder
        self.text_batch = text_batch
        self.name = encoder.name
        self.image_size = encoder.image_size
        self.transform = encoder.transform

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Encode pixels [b, 3, H, W] -> features on the model's device, to be concatenated along the first axis."""
        return self._kept(self.encoder.encode_images(pixels))

    def _kept(self, features: Tensor) -> Tensor:
        # Vectors are few and keep their float32; tokens are what fills the memory.
        return features.to(self.encoder.dtype) if self.token_wise else features

    def encode_texts(self, texts: Sequence[str]) -> Texts:
        """Return the features of ``texts``, in order. Equal strings get equal features, to the bit: encoded once."""
        unique = sorted(set(texts), key=lambda text: (len(text), text))  # by length: less padding in a batch
        batches = [unique[start : start + self.text_batch] for start in range(0, len(unique), self.text_batch)]
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        with Progress("encoding texts", "texts", len(unique)) as progress:
            for batch in batches:
                value, length = self.encoder.encode_texts(batch)
                values.append(self._kept(value))
                lengths += [] if length is None else [length.cpu()]
                progress.add(len(batch))
        encoded = Texts(torch.cat(values), torch.cat(lengths) if lengths else None)
        encoded = self.with_tokens(unique, encoded, self.text_tokens)
        position = {text: i for i, text in enumerate(unique)}
        return encoded.select(torch.tensor([position[text] for text in texts], dtype=torch.int64))

    def with_tokens(self, texts: Sequence[str], encoded: Texts, choice: str) -> Texts:
        """Return encoded texts with the tokens that a choice of :mod:`filip.eval.text_tokens` keeps."""
        if choice == "all":
            return encoded
        if encoded.lengths is None:
            raise UserError(
                f"text_tokens={choice} leaves tokens out of a token-wise score, and {self.name} has one vector a text"
            )
        named = [self.encoder.tokens(text) for text in texts]
        return encoded.only(*select_tokens(texts, named, encoded.lengths, choice))

    def similarity(self, images: Tensor, texts: Texts, progress: bool = False) -> Similarity:
        """Return s^I and s^T of all pairs, both [images, texts] float32 on the CPU; computed where the features are."""
        raise NotImplementedError


class PooledScorer(Scorer):
    """A scorer for one vector per image and text: the cosine, the same in both directions."""

    token_wise = False

    def similarity(self, images: Tensor, texts: Texts, progress: bool = False) -> Similarity:
        scores = pooled_similarity(images, texts.values)
        on_cpu = scores.i2t.cpu()
        return Similarity(on_cpu, on_cpu)  # the same in both directions: one transfer


class TokenScorer(Scorer):
    """A scorer for one vector per token: mean of maxima (equations 4 and 5 of the paper), in bounded memory."""

    token_wise = True

    def similarity(self, images: Tensor, texts: Texts, progress: bool = False) -> Similarity:
        assert texts.lengths is not None, "a token-wise scorer was given pooled texts"
        tokens = images.any(dim=-1)  # all but the padding of images in shapes of their own
        mask = None if bool(tokens.all()) else tokens
        values, lengths = texts.values, texts.lengths
        padded_to = getattr(self.encoder, "padded_to", None)
        if padded_to is not None:
            values, lengths = _with_padding(values, lengths, padded_to)
        if not progress:
            scores = score(images, values, lengths, image_mask=mask)
        else:
            with Progress("scoring", "image-text pairs", len(images) * len(texts)) as bar:
                scores = score(images, values, lengths, image_mask=mask, progress=bar.add)
        t2i = scores.t2i.cpu()
        if padded_to is not None:  # a zero vector adds nothing to the sum over words, and one to their number
            t2i = t2i * (lengths / texts.lengths)
        return Similarity(scores.i2t.cpu(), t2i)


def _with_padding(values: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Return packed texts and their lengths, with one zero vector behind each text of fewer than ``longest`` tokens."""
    short = lengths < longest
    own = torch.ones(int((lengths + short).sum()), dtype=torch.bool)
    own[((lengths + short).cumsum(0) - 1)[short]] = False
    padded = values.new_zeros(len(own), values.shape[1])
    padded[own.to(values.device)] = values
    return padded, lengths + short


RANKING_TITLES = {"image": "by s^I", "text": "by s^T", "mean": "by their mean"}
RANKINGS = tuple(RANKING_TITLES)


def ranking(similarity: Similarity, by: str) -> Tensor:
    """Return one of s^I ("image"), s^T ("text") and their mean ("mean"), [images, texts]."""
    if by == "mean":
        return (similarity.i2t + similarity.t2i) / 2
    return similarity.i2t if by == "image" else similarity.t2i


def load_scorer(model: str, image_size: int | None = None, device: str = "cpu", **loading: Any) -> Scorer:
    """Load the scorer that fits a model; arguments and errors as in :func:`filip.eval.encoders.load_encoder`."""
    return scorer_for(load_encoder(model, image_size, device, **loading))


def scorer_for(encoder: Encoder) -> Scorer:
    """Return a token-wise or pooled scorer, as the encoder is."""
    return TokenScorer(encoder) if encoder.token_wise else PooledScorer(encoder)
