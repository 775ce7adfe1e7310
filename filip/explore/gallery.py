"""Hold images and texts as one or two models see them, for the explorer to rank and explain.

A token-wise model ranks images as `filip search` does, by s^T: the mean over the tokens of words that name something of
their best patch (equation 5 of the paper), by the scorer of every table. A pooled model ranks by its cosine, and its
token map uses its projections, as in :mod:`filip.eval.word_patch`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filip.common.errors import UserError, plain
from filip.common.files import nothing_at
from filip.common.progress import Progress
from filip.eval.scorer import Scorer, Texts, load_scorer
from filip.explore.names import counted_tokens, encode_query, named_things
from filip.sets.image_set import Pictures, thumbnail

BATCH = 64
THUMBNAIL = 192  # pixels


@dataclass
class ViewedImages:
    """Features of n images, as a model sees them.

    scored: input of its scorer, [n, n1, d] or [n, d]. map: tokens to compare with words, float32 [n, m, d]: all
    scored tokens of a token-wise model, the projected patches of a pooled one; m = 0 if the model has none.
    """

    scored: Tensor
    map: Tensor


@dataclass
class ViewedText:
    """A text: the scorer's input; its tokens as strings; their vectors [n2, d]; its names (see named_things).

    counted: positions of the tokens that the score counts.
    """

    scored: Texts
    tokens: list[str]
    vectors: Tensor
    names: list[dict]
    counted: list[int]


class Viewer:
    """A model in the explorer, under a ``label``."""

    def __init__(self, scorer: Scorer, label: str) -> None:
        self.scorer, self.label = scorer, label
        self.encoder = scorer.encoder
        self.token_wise = scorer.token_wise
        self.grid = self.encoder.grid
        self.has_map = self.grid != (0, 0)

    def images(self, pixels: Tensor) -> ViewedImages:
        """Encode pixels [n, 3, S, S], transformed for this model."""
        scored = self.scorer.encode_images(pixels)
        if self.token_wise:
            return ViewedImages(scored, scored)
        patches = self.encoder.patches(pixels) if self.has_map else scored[:, None, :][:, :0]
        return ViewedImages(scored, patches)

    def text(self, text: str, things: Sequence[str] = ()) -> ViewedText:
        """Encode a caption as a search does, with the things that it is known to name."""
        scored = encode_query(self.scorer, text, caption=True)
        if not self.has_map:
            return ViewedText(scored, [], scored.values[:0], [], [])
        vectors = self.scorer.encode_texts([text]).values if self.token_wise else self.encoder.words([text])[0]
        counted = [place for place, counts in enumerate(counted_tokens(self.encoder, text, caption=True)) if counts]
        names = named_things(self.encoder, text, things)
        return ViewedText(scored, self.encoder.tokens(text), vectors, names, counted)

    def scores(self, images: ViewedImages, text: ViewedText) -> Tensor:
        """Return each image's score for the text, float32 [n]: the same numbers as in every table."""
        return self.scorer.similarity(images.scored, text.scored).t2i[:, 0]


def load_viewers(models: Sequence[str], labels: Sequence[str], device: str = "auto") -> list[Viewer]:
    """Load one to three models. Raises UserError for another number of models, or a different number of labels."""
    if len(models) not in (1, 2, 3):
        raise UserError(f"models: {len(models)} given; the explorer shows one, two or three side by side")
    if labels and len(labels) != len(models):
        raise UserError(f"{len(labels)} labels for {len(models)} models: give one each, or none")
    names = list(labels) or [Path(model).stem for model in models]
    return [Viewer(load_scorer(m, None, device), name) for m, name in zip(models, names, strict=True)]


@dataclass
class Gallery:
    """Encoded images with their captions.

    own_text: for each image the position in ``texts`` of its first caption, or None. things: for each text, its known
    names.
    """

    title: str
    viewers: list[Viewer]
    keys: list[str]
    thumbnails: list[bytes]
    features: list[ViewedImages]  # one per viewer
    texts: list[str]
    things: list[list[str]]
    own_text: list[int | None]

    @classmethod
    def of(cls, viewers: list[Viewer], pictures: Pictures, further_texts: Sequence[str] = ()) -> Gallery:
        """Read and encode all pictures. Raises UserError if none can be read."""
        gallery = cls(pictures.title, viewers, [], [], [], [], [], [])
        positions: dict[str, int] = {}
        parts: list[list[ViewedImages]] = [[] for _ in viewers]
        pixels: list[list[Tensor]] = [[] for _ in viewers]

        def encode() -> None:
            for viewer, waiting, done in zip(viewers, pixels, parts, strict=True):
                done.append(viewer.images(torch.stack(waiting)))
                waiting.clear()

        with Progress("encoding", "images", len(pictures)) as progress:
            for picture in pictures:
                gallery.keys.append(picture.key)
                gallery.thumbnails.append(thumbnail(picture.image, THUMBNAIL))
                captions = [gallery._text(text, picture.things, positions) for text in picture.captions]
                gallery.own_text.append(captions[0] if captions else None)
                for viewer, waiting in zip(viewers, pixels, strict=True):
                    waiting.append(viewer.scorer.transform(picture.image))
                if len(pixels[0]) == BATCH:
                    encode()
                progress.add()
        if not gallery.keys:
            raise UserError(f"none of the {len(pictures)} images can be read")
        if pixels[0]:
            encode()
        for text in further_texts:
            gallery._text(text, [], positions)
        gallery.features = [
            ViewedImages(torch.cat([p.scored for p in done]), torch.cat([p.map for p in done])) for done in parts
        ]
        return gallery

    def _text(self, text: str, things: list[str], positions: dict[str, int]) -> int:
        if text not in positions:
            positions[text] = len(self.texts)
            self.texts.append(text)
            self.things.append(things)
        return positions[text]

    def alternative(self, index: int) -> str:
        """Describe an image in words, for people who do not see it."""
        own_text = self.own_text[index]
        return self.keys[index] if own_text is None else self.texts[own_text]


def read_texts(path: str | None) -> list[str]:
    """Read the texts of a file, one a line; none without a file. Raises UserError if it cannot be read."""
    if not path:
        return []
    if not Path(path).exists():
        raise UserError(f"texts: {nothing_at(path)}")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"texts={path} cannot be read: {plain(error)}") from error
    return [line.strip() for line in lines if line.strip()]
