"""Tokenize by CLIP's byte-pair encoding: lower-cased, 49,408 tokens, [BOS] text [EOS].

Token id 0 is a real token and CLIP also pads with it, so a caption's length is the place of its [EOS],
never the number of ids above 0.
"""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ftfy
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

BOS = 49406
EOS = 49407
MERGES = Path(__file__).resolve().parents[1] / "resources" / "clip_merges.txt.gz"
END_OF_WORD = "</w>"
# In a text these mean their ids, as in open_clip.
SPECIAL = {"<start_of_text>": BOS, "<end_of_text>": EOS}
# The pieces of a word that are encoded one by one: endings such as 's, letters, single digits, signs.
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clean(text: str) -> str:
    """Clean a caption as CLIP does before its BPE: repair mojibake, undo HTML escapes twice, strip."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.strip()  # ftfy and html would change nothing, in ten times the time
    return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


def tokenize_numpy(texts: Sequence[str], context_length: int = 77) -> tuple[np.ndarray, np.ndarray]:
    """Do :func:`tokenize` in numpy arrays: ids uint16 ``[b, context_length]`` and lengths int64 ``[b]``."""
    rows = [[BOS, *row[: context_length - 2], EOS] for row in _ids_of(texts)]
    filled = np.fromiter(map(len, rows), np.int64, len(rows))
    ids = np.zeros((len(rows), context_length), np.uint16)
    ids[np.arange(context_length) < filled[:, None]] = [token for row in rows for token in row]
    # the first one: a caption may have the token's name in it
    return ids, (ids == EOS).argmax(axis=1).astype(np.int64) + 1


def token_names(text: str, context_length: int = 77) -> list[str]:
    """Return the tokens of one text as a person reads them (:func:`decode_token`), cut as :func:`tokenize` cuts."""
    ids = [*_ids_of([text])[0][: context_length - 2], EOS]
    return [decode_token(token) for token in (BOS, *ids[: ids.index(EOS) + 1])]


def _ids_of(texts: Iterable[str]) -> list[list[int]]:
    """Return each text's ids, uncut, without [BOS] and [EOS]."""
    cleaned = [clean(text).lower() for text in texts]
    encoded = _tokenizer().encode_batch_fast(cleaned, add_special_tokens=False)
    return [
        _with_special(text) if any(name in text for name in SPECIAL) else encoding.ids
        for text, encoding in zip(cleaned, encoded, strict=True)
    ]


def _with_special(text: str) -> list[int]:
    """Return the ids of a text with the name of a special token, where its pieces leave that whole."""
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex("|".join([*SPECIAL, PIECES])), "removed", invert=True)
    ids: list[int] = []
    for piece, _ in split.pre_tokenize_str(text):
        special = SPECIAL.get(piece)
        ids += [special] if special else _tokenizer().encode(piece, add_special_tokens=False).ids
    return ids


def tokenize(texts: str | Sequence[str], context_length: int = 77) -> tuple[Tensor, Tensor]:
    """Return the token ids of captions and their lengths.

    Returns ids int64 ``[b, n2]``, padded with 0 to the longest caption of the batch, and lengths int64
    ``[b]`` that include [BOS] and [EOS]. A caption longer than ``context_length`` is cut and still ends in
    [EOS].
    """
    import torch  # not above: the text rules need tokens in many processes, and none of torch

    ids, lengths = tokenize_numpy([texts] if isinstance(texts, str) else texts, context_length)
    longest = int(lengths.max(initial=0))
    return torch.from_numpy(ids[:, :longest].astype(np.int64)), torch.from_numpy(lengths)


def token_counts(texts: Sequence[str], most: int = 1024) -> list[int]:
    """Count the tokens of each text with [BOS] and [EOS], uncut; more than ``most`` count as ``most``."""
    return [min([*row, EOS].index(EOS) + 2, most) for row in _ids_of(texts)]


def is_one_token(word: str) -> bool:
    """Return whether CLIP's vocabulary has the word in one piece."""
    return len(_ids_of([word])[0]) == 1


def decode_token(token: int) -> str:
    """Return one token as a person reads it in a picture: ``[BOS]``, ``[EOS]``, ``cat``, or a part of a word."""
    if token in (BOS, EOS):
        return "[BOS]" if token == BOS else "[EOS]"
    return token_texts()[token].strip()


@cache
def token_texts() -> tuple[str, ...]:
    """Return every token as text, by id; one that ends a word ends in a space."""
    byte_of = {ord(letter): byte for byte, letter in _letters().items()}
    texts = []
    for token in vocabulary():
        raw = token.removesuffix(END_OF_WORD).translate(byte_of).encode("latin-1")
        texts.append(raw.decode("utf-8", errors="replace") + " " * token.endswith(END_OF_WORD))
    return (*texts, "", "")


@cache
def merges() -> tuple[tuple[str, str], ...]:
    """Return CLIP's pairs of symbols in the order in which they are merged."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        return tuple((first, second) for first, second in map(str.split, file))


@cache
def vocabulary() -> tuple[str, ...]:
    """Return all tokens but the two special ones, by id: bytes, bytes that end a word, what merges make."""
    letters = [*_letters().values()]
    return (*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges()))


@cache
def _letters() -> dict[int, str]:
    """Return the sign of each byte, by id: printable ones are themselves, the others follow."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(unprintable)}


def prepare() -> None:
    """Build the tokenizer now: processes that are forked afterwards share its 40 MB, and none waits for it."""
    _tokenizer()


@cache
def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    ids = {token: number for number, token in enumerate(vocabulary())}
    bpe = models.BPE(ids, list(merges()), continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD)
    tokenizer = Tokenizer(bpe)
    pieces = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
    return tokenizer
