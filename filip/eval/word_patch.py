"""Find which word each image patch looks at: the paper's word-patch alignment (drawing is elsewhere)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from filip.eval.encoders import Encoder


@dataclass(frozen=True)
class Prompt:
    """A text around a label: ``fill("cat")`` gives the prompt."""

    before: str
    after: str

    def fill(self, label: str) -> str:
        # A caption that ends in a full stop would give "..": COCO's often do.
        if self.after.startswith((".", ",")):
            label = label.rstrip().rstrip(".").rstrip()
        return f"{self.before}{label}{self.after}"


@dataclass
class WordPatch:
    """The alignment of one image with one text.

    similarity: [patches, tokens], patches row by row; tokens: strings, [BOS] first and [EOS] last;
    label: positions of the tokens that belong to the label; grid: (rows, columns).
    """

    similarity: Tensor
    tokens: list[str]
    label: list[int]
    grid: tuple[int, int]

    @property
    def indices(self) -> np.ndarray:
        """Return [rows, columns]: for each patch the position of its most similar token ([BOS] = 0)."""
        return self.similarity.argmax(1).view(self.grid).numpy()

    @property
    def hits(self) -> np.ndarray:
        """Return [rows, columns] bool: whether a patch's most similar token belongs to the label."""
        return np.isin(self.indices, self.label)

    def heat(self, tokens: Sequence[int] | None = None) -> np.ndarray:
        """Return [rows, columns]: each patch's highest similarity to any of ``tokens`` (default: the label's)."""
        chosen = list(self.label if tokens is None else tokens)
        return self.similarity[:, chosen].amax(1).view(self.grid).numpy()


def word_patches(encoder: Encoder, pixels: Tensor, labels: Sequence[str], prompt: Prompt) -> list[WordPatch]:
    """Align each image with its label in a prompt.

    pixels: [b, 3, H, W], transformed for ``encoder``; labels: b strings. A pooled model's patch and word
    vectors come from its projections, applied to every token, which its training never used.
    """
    words = encoder.words([prompt.fill(label) for label in labels])
    return [
        WordPatch(
            image @ text.T, encoder.tokens(prompt.fill(label)), label_tokens(encoder, prompt, label), encoder.grid
        )
        for image, text, label in zip(encoder.patches(pixels), words, labels, strict=True)
    ]


def label_tokens(encoder: Encoder, prompt: Prompt, label: str) -> list[int]:
    """Return the positions of the label's tokens in the tokenised prompt."""
    whole = encoder.tokens(prompt.fill(label))
    first = len(encoder.tokens(prompt.before)) - 1  # without its [EOS]
    ahead = encoder.tokens(prompt.fill(label)[: len(prompt.fill(label)) - len(prompt.after)])[:-1]
    # Punctuation at the label's end may merge with what follows: count only what both begin with.
    last = first
    while last < min(len(ahead), len(whole) - 1) and ahead[last] == whole[last]:
        last += 1
    return list(range(first, last))
