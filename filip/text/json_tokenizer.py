"""Tokenize by a ``tokenizer.json`` of Hugging Face's tokenizers, for other vocabularies than CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filip.common.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor


class CaptionTokenizer(Protocol):
    """The interface of the module :mod:`filip.text.tokenizer`, which is CLIP's, and of :class:`JsonTokenizer`."""

    def tokenize(self, texts: str | Sequence[str], context_length: int = ...) -> tuple[Tensor, Tensor]: ...

    def token_names(self, text: str, context_length: int = ...) -> list[str]: ...

    def token_counts(self, texts: Sequence[str], most: int = ...) -> list[int]: ...

    def decode_token(self, token: int) -> str: ...

    def prepare(self) -> None: ...


class JsonTokenizer:
    """A tokenizer from the text of its ``tokenizer.json``, with its normaliser and special tokens.

    A text that is cut keeps its special tokens; one of which nothing is left has one token, with id 0.
    """

    def __init__(self, json: str, origin: str) -> None:
        self.json, self.origin = json, origin

    @staticmethod
    def from_file(path: str | Path) -> JsonTokenizer:
        """Read a ``tokenizer.json``. Raises UserError if there is none, or if it is not a tokenizer."""
        try:
            tokenizer = JsonTokenizer(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the tokenizer {path}: {first_line(error)}") from error
        tokenizer.prepare()
        return tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_str(self.json)
        except Exception as error:  # tokenizers raises nothing more special
            raise UserError(
                f"{self.origin} is not a tokenizer.json of Hugging Face's tokenizers: {first_line(error)}"
            ) from error
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def size(self) -> int:
        """Return one more than the largest id."""
        return 1 + max(self._tokenizer.get_vocab().values(), default=-1)

    def prepare(self) -> None:
        """Build the tokenizer now, for processes that are forked afterwards."""
        _ = self._tokenizer

    def tokenize(self, texts: str | Sequence[str], context_length: int = 64) -> tuple[Tensor, Tensor]:
        """Return ids int64 ``[b, n2]``, padded with 0 to the longest text, and lengths int64 ``[b]``."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(ids) for ids in self._ids([texts] if isinstance(texts, str) else texts, context_length)]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return (pad_sequence(rows, batch_first=True) if rows else torch.zeros(0, 0, dtype=torch.int64)), lengths

    def _ids(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        self._tokenizer.enable_truncation(longest)
        return [encoding.ids or [0] for encoding in self._tokenizer.encode_batch(list(texts))]

    def token_names(self, text: str, context_length: int = 64) -> list[str]:
        """Return the tokens of one text as a person reads them, cut as :meth:`tokenize` cuts."""
        return [self.decode_token(token) for token in self._ids([text], context_length)[0]]

    def token_counts(self, texts: Sequence[str], most: int = 1024) -> list[int]:
        """Count the tokens of each text, special ones included; more than ``most`` count as ``most``."""
        return [len(ids) for ids in self._ids(texts, most)]

    def decode_token(self, token: int) -> str:
        """Return one token as a person reads it."""
        return readable_token(self._tokenizer.id_to_token(token) or "")


def readable_token(token: str) -> str:
    """Return a token in the form of :func:`filip.text.tokenizer.decode_token`."""
    special = {"<start_of_text>": "[BOS]", "<end_of_text>": "[EOS]", "</s>": "[EOS]", "<eos>": "[EOS]"}
    special |= {"<|startoftext|>": "[BOS]", "<|endoftext|>": "[EOS]", "<bos>": "[BOS]", "<s>": "[BOS]"}
    if len(token) > 2:  # WordPiece's mark of a piece that continues a word
        token = token.removeprefix("##")
    return special.get(token, token.replace("</w>", "").replace("▁", ""))
