"""Use a trained model in five lines: ``from filip import load``.

    model = load("emoji")
    images, texts = ["docs/scenes/02.png", "docs/scenes/09.png"], ["a snake", "a jellyfish"]
    print(model.rank(images, texts))                                                # each image's texts, best first
    print(model.similarity(images, texts).t2i)                                      # and their scores
    print(model.align("docs/scenes/09.png", "a jellyfish with a luggage and a fax machine"))    # each patch's word

Everything goes through the transform, the towers and the scorer of the evaluation (:mod:`filip.eval.scorer`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.eval.scorer import Scorer, Texts, load_scorer, ranking
from filip.eval.text_tokens import kept_tokens
from filip.eval.word_patch import Prompt, word_patches
from filip.images.rgb import MAX_ASPECT, UNDECODABLE, unreadable, upright
from late_interaction import Similarity

__all__ = ["Alignment", "Model", "Similarity", "Texts", "load"]

ImageLike: TypeAlias = "str | PathLike[str] | Image.Image | Tensor"

# Tokens of a text that names one thing, with its article, [BOS] and [EOS]. For such texts s^T is right most often, for
# longer ones the mean of s^I and s^T (docs/evaluation.md).
SHORT = 6


def load(path: str | PathLike[str], *, device: str = "auto", image_size: int | None = None) -> Model:
    """Load a trained model, ready to encode, on ``device`` (a torch device; "auto" = a GPU where there is one).

    path: "emoji", the model that comes with the package; a ``.safetensors`` file that training or ``filip export``
    wrote, FILIP or its CLIP baseline; or ``open_clip:ARCHITECTURE:WEIGHTS``.
    image_size: side of the input in pixels, if it is to differ from the training's.
    Raises UserError if the model or device does not exist, or the image size is not a multiple of the model's patches.
    """
    if not isinstance(path, str | PathLike):
        raise UserError(f"load takes the path or the name of a model, not {_kind(path)}")
    return Model(load_scorer(str(path), image_size, str(device)))


@dataclass(frozen=True)
class Alignment:
    """An alignment of an image's patches with a text's words: cosines of every patch with every token.

    tokens: the text's tokens as strings, [BOS] first and [EOS] last, n2 of them.
    similarity: float32 ``[rows, columns, n2]``, patches from top left to bottom right.
    names: n2 booleans, true for the tokens of words that name something; printing shows ``.`` for the others.
    """

    tokens: list[str]
    similarity: Tensor
    names: list[bool]

    @property
    def best_token(self) -> Tensor:
        """Return int64 ``[rows, columns]``: for each patch the position in ``tokens`` of its most similar token."""
        return self.similarity.argmax(2)

    @property
    def best_patch(self) -> Tensor:
        """Return int64 ``[n2, 2]``: for each token the row and the column of its most similar patch."""
        rows, columns, _ = self.similarity.shape
        best = self.similarity.reshape(rows * columns, -1).argmax(0)
        return torch.stack([best // columns, best % columns], 1)

    @property
    def words(self) -> list[list[str]]:
        """Return ``rows`` lists of ``columns`` strings: the most similar token of each patch."""
        return [[self.tokens[token] for token in row] for row in self.best_token.tolist()]

    def __str__(self) -> str:
        shown = [token if names else "." for token, names in zip(self.tokens, self.names, strict=True)]
        width = max(map(len, shown))
        rows = self.best_token.tolist()
        return "\n".join(" ".join(f"{shown[token]:<{width}}" for token in row).rstrip() for row in rows)


class Model:
    """A trained model: it turns images and texts into unit embeddings, compares them, and aligns patches with words.

    name: its file's name. token_wise: True for FILIP, which has an embedding per patch and token; False for a pooled
    model (CLIP), which has one per image and text. image_size: side of its input in pixels.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.name = scorer.name
        self.token_wise = scorer.token_wise
        self.image_size = scorer.image_size

    def encode_images(self, images: Sequence[ImageLike] | Tensor, *, batch_size: int = 64) -> Tensor:
        """Encode images as unit embeddings, float32 on the CPU: ``[n, n1, d]`` if token-wise, else ``[n, d]``.

        images: paths, PIL images, or tensors: uint8 ``[3, H, W]`` is a picture of any size; float ``[3, S, S]`` has
        been resized to ``image_size`` and normalised by the caller. A tensor ``[n, 3, ...]`` is n of these.
        The n1 tokens of an image are its patches, row by row (after [CLS], if the model was trained with it).
        Raises UserError for anything but an image, or for a file that cannot be read as one.
        """
        if isinstance(images, str | PathLike | Image.Image) or (isinstance(images, Tensor) and images.ndim != 4):
            raise UserError(
                f"encode_images takes a list of images, or a tensor [n, 3, H, W], not {_kind(images)}; for one image "
                "give [image]"
            )
        if not isinstance(images, Iterable):
            raise UserError(f"encode_images takes a list of images, not {_kind(images)}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r} must be a whole number, at least 1")
        items = images if isinstance(images, Tensor) else list(images)
        encoded = [self._scorer.encode_images(pixels).float().cpu() for pixels in self._batches(items, batch_size)]
        if not encoded:
            raise UserError("no images: the list is empty")
        return torch.cat(encoded)

    def encode_texts(self, texts: Sequence[str]) -> Texts:
        """Encode texts as unit embeddings, float32 on the CPU; a text that occurs several times is encoded once.

        Returns ``values`` ``[T, d]``, the tokens of all texts one after another, with their ``lengths`` ``[t]`` ([BOS]
        and [EOS] included) if token-wise; else ``values`` ``[t, d]``, and ``lengths`` is None. A text that is longer
        than the model reads is cut, with a warning. Raises UserError for anything but a list of strings.
        """
        if isinstance(texts, str) or not isinstance(texts, Iterable):
            raise UserError(f"encode_texts takes a list of strings, not {_kind(texts)}; for one text give [text]")
        strings = list(texts)
        if not strings:
            raise UserError("no texts: the list is empty")
        for number, text in enumerate(strings):
            if not isinstance(text, str):
                raise UserError(f"encode_texts takes a list of strings, and number {number} is {_kind(text)}")
        self._warn_of_cut(strings)
        return self._scorer.encode_texts(strings).to("cpu")

    def similarity(
        self, images: Sequence[ImageLike] | Tensor, texts: Sequence[str] | Texts, *, batch_size: int = 64
    ) -> Similarity:
        """Compute the similarity of every image with every text in both directions, float32 ``[images, texts]`` each.

        images, texts: arguments of :meth:`encode_images` and :meth:`encode_texts`, or their results.
        ``i2t`` ranks the texts of an image: the mean over its patches of the best token (equation 4 of the paper);
        ``t2i`` ranks the images of a text: the mean over its tokens of the best patch (equation 5). For a pooled
        model both are the cosine. Raises UserError for embeddings of another kind of model.
        """
        features = images if _is_encoded(images) else self.encode_images(images, batch_size=batch_size)
        assert isinstance(features, Tensor)
        encoded = texts if isinstance(texts, Texts) else self.encode_texts(texts)
        for what, token_wise in (("images", features.ndim == 3), ("texts", encoded.lengths is not None)):
            if token_wise != self.token_wise:
                raise UserError(
                    f"these {what} were encoded by a {_trained(token_wise)} model, and {self.name} is a "
                    f"{_trained(self.token_wise)} one: encode them with the model that compares them"
                )
        if features.shape[-1] != encoded.values.shape[-1]:
            raise UserError(
                f"the images have {features.shape[-1]} channels and the texts {encoded.values.shape[-1]}: they were "
                "encoded by two models; encode both with the model that compares them"
            )
        return self._scorer.similarity(features, encoded)

    def rank(
        self, images: Sequence[ImageLike] | Tensor, texts: Sequence[str], *, batch_size: int = 64
    ) -> list[list[str]]:
        """Return, for each image, the texts from the best to the worst; images as :meth:`similarity` takes them.

        Texts of up to six tokens, such as "a snake", are ranked by s^T, longer ones by the mean of s^I and s^T, as that
        is right most often. Raises what :meth:`similarity` raises.
        """
        items = list(texts) if not isinstance(texts, str) and isinstance(texts, Iterable) else texts
        encoded = self.encode_texts(items)
        short = encoded.lengths is None or int(encoded.lengths.max()) <= SHORT
        scores = ranking(self.similarity(images, encoded, batch_size=batch_size), "text" if short else "mean")
        return [[items[place] for place in row] for row in scores.argsort(dim=1, descending=True, stable=True).tolist()]

    def align(self, image: ImageLike, text: str) -> Alignment:
        """Find which patch of ``image`` belongs to which word of ``text``; the image as for :meth:`encode_images`.

        Raises UserError for a pooled model, which is trained on one vector per image and text and not on patches and
        words, and for several images or texts.
        """
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"align takes one text with words in it, not {_kind(text)}")
        if not self.token_wise:
            raise UserError(
                f"{self.name} is a pooled model: it was trained on one vector per image and text, so its patches and "
                "words cannot be aligned; load a token-wise one (model.interaction=token_wise)"
            )
        patches = word_patches(self._scorer.encoder, self._pixels(image)[None], [text], Prompt("", ""))[0]
        names = kept_tokens(text, patches.tokens, "content")
        return Alignment(patches.tokens, patches.similarity.reshape(*patches.grid, -1), names)

    def _warn_of_cut(self, texts: list[str]) -> None:
        longest = self._scorer.encoder.context_length
        long = [text for text in texts if len(text) > longest]  # a token has a character or more
        cut = sum(count > longest for count in self._scorer.encoder.token_counts(long)) if long else 0
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than the {longest} tokens that {self.name} reads, and are cut",
                stacklevel=3,
            )

    def _batches(self, images: list[ImageLike] | Tensor, size: int) -> Iterator[Tensor]:
        for start in range(0, len(images), size):
            yield torch.stack([self._pixels(image) for image in images[start : start + size]])

    def _pixels(self, image: ImageLike) -> Tensor:
        """Return the image as the model takes it: float32 ``[3, S, S]``."""
        if isinstance(image, Tensor):
            if image.ndim != 3 or image.shape[0] != 3:
                raise UserError(f"a tensor of shape {list(image.shape)} is not an image; give [3, H, W]")
            if image.dtype == torch.uint8:
                return self._transformed(Image.fromarray(image.permute(1, 2, 0).cpu().numpy()))
            if not image.is_floating_point():
                raise UserError(f"a tensor of {image.dtype} is not an image: give uint8, or normalised floats")
            if tuple(image.shape[1:]) != (self.image_size, self.image_size):
                raise UserError(
                    f"a {image.dtype} tensor of shape {list(image.shape)}: normalised pixels have to be "
                    f"[3, {self.image_size}, {self.image_size}]; pixels of another size can be given as uint8"
                )
            return image.float()
        if isinstance(image, Image.Image):
            return self._transformed(image)
        if not isinstance(image, str | PathLike):
            raise UserError(f"{_kind(image)} is not an image; give a path, a PIL image or a tensor [3, H, W]")
        if Path(image).is_dir():
            raise UserError(f"{image} is a folder: give the images in it")
        if not Path(image).is_file():
            raise UserError(nothing_at(image, "give an image file"))
        try:
            with Image.open(image) as opened:
                return self._transformed(opened)
        except UNDECODABLE as error:
            raise unreadable(image, error) from error

    def _transformed(self, image: Image.Image) -> Tensor:
        if image.mode == "F":
            raise UserError("a PIL image of mode F has no known range: give 8 bits, e.g. image.convert('L')")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise UserError(
                f"the image has {image.width} x {image.height} pixels: too long and narrow for a model's square"
            )
        return self._scorer.transform(upright(image))


def _is_encoded(images: object) -> bool:
    """Return whether a tensor holds encoded image tokens, which are unit vectors, and not pixels."""
    return (
        isinstance(images, Tensor)
        and images.ndim in (2, 3)
        and images.is_floating_point()
        and bool(((images.norm(dim=-1) - 1).abs() < 0.01).all())
    )


def _trained(token_wise: bool) -> str:
    return "token-wise" if token_wise else "pooled"


def _kind(value: object) -> str:
    """Describe the type of a value, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    return f"a {type(value).__name__}"
