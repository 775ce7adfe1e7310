"""Choose the tokens of a text that take part in a token-wise score.

They are all, all but [BOS] and [EOS], or the tokens of words that name something. The paper leaves open whether [BOS]
and [EOS] count. Models are trained with them here, and much of image to text rests on them and on function words, to
which the patches of a background go.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from filip.text.words import FUNCTION_SIGNS, FUNCTION_WORDS

CHOICES = ("all", "without_ends", "content")
ENDS = ("[BOS]", "[EOS]", "[CLS]", "[SEP]")
# close to how CLIP's tokenizer splits a text before its pairs
_WORDS = re.compile(rf"[{FUNCTION_SIGNS}]|[^\W\d_{FUNCTION_SIGNS}]+|\d|[^\s\w]+|_+")


def kept_tokens(text: str, tokens: Sequence[str], choice: str) -> list[bool]:
    """Return for each token of a text whether it takes part. tokens: as ``Encoder.tokens`` names them.

    choice: of :data:`CHOICES`. A text in which no word names anything keeps all tokens but its ends, and one that is
    empty keeps its ends.
    """
    inner = [token not in ENDS for token in tokens]
    every = [True] * len(tokens)
    mask = every if choice == "all" else inner
    if choice == "content":
        mask = [part and name for part, name in zip(inner, _names(text, tokens), strict=True)]
    return next(found for found in (mask, inner, every) if any(found) or not tokens)


def _names(text: str, tokens: Sequence[str]) -> list[bool]:
    """Return for each token whether its word is neither punctuation nor a function word."""
    words = iter(_WORDS.findall(text.lower()))
    word, so_far, names = next(words, ""), "", []
    for token in tokens:
        if token in ENDS:
            names.append(False)
            continue
        so_far += token
        if not word.startswith(so_far):  # the tokenizer split elsewhere: the piece is its own word
            word = so_far = token
        # a byte of a letter that took several tokens is "\ufffd"
        names.append(any(sign.isalnum() or sign == "\ufffd" for sign in word) and word not in FUNCTION_WORDS)
        if so_far == word:
            word, so_far = next(words, ""), ""
    return names


def select_tokens(
    texts: Sequence[str], tokens: Sequence[Sequence[str]], lengths: Tensor, choice: str
) -> tuple[Tensor, Tensor]:
    """Return (which of the packed tokens take part [T] bool, how many are left of each text [t] int64).

    tokens: of each text, with or without a vector for its ends; lengths: [t] int64, the vectors of each.
    """
    masks = []
    for text, names, length in zip(texts, tokens, lengths.tolist(), strict=True):
        names = list(names)
        if len(names) == length + 2:  # a model that leaves its ends out by itself
            names = names[1:-1]
        kept = kept_tokens(text, names[:length], choice)
        masks.append(torch.tensor(kept + [False] * (length - len(kept)), dtype=torch.bool))
    return torch.cat(masks), torch.tensor([int(mask.sum()) for mask in masks], dtype=torch.int64)
