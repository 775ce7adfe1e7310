"""CLIP's byte-pair encoding: lower-cased, 49,408 tokens, [BOS] text [EOS].

Token id 0 is a real token and CLIP also pads with it, so a caption's length is where its [EOS] stands,
never the number of ids above 0.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import ftfy
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BOS = 49406
EOS = 49407


def clean(text: str) -> str:
    """What CLIP does to a caption before its BPE: repair mojibake, undo HTML escapes twice, strip."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # nothing for ftfy or html to repair, in a tenth of the time
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def tokenize_numpy(texts: Sequence[str], context_length: int = 77) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`tokenize`, as numpy arrays: ids uint16 ``[b, context_length]`` and lengths int64 ``[b]``."""
    if not texts:
        return np.zeros((0, context_length), np.uint16), np.zeros(0, np.int64)
    ids = _tokenizer().tokenize_batch([clean(t) for t in texts], context_length=context_length)
    return ids, (ids == EOS).argmax(axis=1).astype(np.int64) + 1


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> tuple[Tensor, Tensor]:
    """Token ids of captions and their lengths.

    Returns ids int64 ``[b, n2]``, padded with 0 to the longest caption of the batch, and lengths int64
    ``[b]`` that include [BOS] and [EOS]. A caption longer than ``context_length`` is cut and still ends in
    [EOS].
    """
    import torch  # not above: the text rules need tokens in many processes, and none of torch

    ids, lengths = tokenize_numpy([texts] if isinstance(texts, str) else texts, context_length)
    longest = int(lengths.max(initial=0))
    return torch.from_numpy(ids[:, :longest].astype(np.int64)), torch.from_numpy(lengths)


def token_counts(texts: Sequence[str], most: int = 1024) -> list[int]:
    """Tokens of each text with [BOS] and [EOS], uncut; more than ``most`` count as ``most``."""
    counts: list[int] = []
    for start in range(0, len(texts), 1024):  # rows of `most` ids: a few MB at a time
        counts += tokenize_numpy(texts[start : start + 1024], most)[1].tolist()
    return counts


def is_one_token(word: str) -> bool:
    """Whether CLIP's vocabulary has the word in one piece."""
    _, lengths = tokenize_numpy([word], context_length=4)  # [BOS] token [EOS], and room for a second one
    return int(lengths[0]) == 3


def decode_token(token: int) -> str:
    """One token as a person reads it in a picture: ``[BOS]``, ``[EOS]``, ``cat``, or a part of a word."""
    if token in (BOS, EOS):
        return "[BOS]" if token == BOS else "[EOS]"
    return _tokenizer().decode([token]).strip()


@cache
def token_texts() -> tuple[str, ...]:
    """Every token as text, by id; one that ends a word ends in a space."""
    return tuple("" if token in (BOS, EOS) else _tokenizer().decode([token]) for token in range(EOS + 1))


class OpenClipTokenizer:
    """open_clip's tokenizer in the form of instant-clip-tokenizer: the same ids, but Python's speed."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.bpe = SimpleTokenizer()
        # `clean` was here before, and repairing mojibake twice is not the same as once
        self.bpe.clean_fn = lambda text: " ".join(text.split()).lower()

    def tokenize_batch(self, texts: list[str], context_length: int) -> np.ndarray:
        return self.bpe(texts, context_length).numpy().astype(np.uint16)

    def decode(self, ids: list[int]) -> str:
        return self.bpe.decode(ids)


@cache
def _tokenizer() -> Any:
    try:
        from instant_clip_tokenizer import Tokenizer
    except ImportError:  # it has no wheel for Python 3.13 and newer
        return OpenClipTokenizer()
    return Tokenizer()
