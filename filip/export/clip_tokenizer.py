"""Provide CLIP's vocabulary as a tokenizer of Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

from filip.errors import UserError
from filip.models import DualEncoder
from filip.tokenizer import BOS, EOS, merges, vocabulary


def clip_tokenizer(model: DualEncoder) -> Any:
    """Return a ``transformers.CLIPTokenizer`` with the ids of :mod:`filip.tokenizer` that cuts at the model's length.

    It lacks the cleaning of :func:`filip.tokenizer.clean`, which exported folders contain. Raises UserError if the
    model has another text tower or vocabulary than CLIP's.
    """
    from transformers import CLIPTokenizer

    if not model.config.text.like_clip:
        raise UserError(
            "to=hf, mv and onnx hold CLIP's text tower and vocabulary alone, and this model's text tower is another; "
            "to=safetensors and compact hold it"
        )
    if model.config.text.vocab_size != EOS + 1:
        raise UserError(
            f"the model has {model.config.text.vocab_size} word vectors and CLIP's vocabulary {EOS + 1} tokens: "
            "no tokenizer can be exported with it"
        )
    ids: dict[str, int] = {token: number for number, token in enumerate(vocabulary())}
    ids |= {"<|startoftext|>": BOS, "<|endoftext|>": EOS}
    pairs: Any = list(merges())  # transformers' annotation says strings
    longest = model.config.text.context_length
    tokenizer = CLIPTokenizer(vocab=ids, merges=pairs, model_max_length=longest)
    # in tokenizer.json, for readers without transformers
    tokenizer.backend_tokenizer.enable_truncation(longest)
    return tokenizer
