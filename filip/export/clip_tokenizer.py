"""CLIP's vocabulary as Hugging Face's tokenizer, made of the merges that open_clip ships."""

from __future__ import annotations

from typing import Any

from filip.errors import UserError
from filip.models import DualEncoder
from filip.tokenizer import BOS, EOS


def clip_tokenizer(model: DualEncoder) -> Any:
    """A ``transformers.CLIPTokenizer`` with the ids of :mod:`filip.tokenizer` that cuts at the model's context length.

    It lacks the cleaning of :func:`filip.tokenizer.clean`, which exported folders carry beside it. UserError if the
    model's vocabulary is another one.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    if model.config.text.vocab_size != EOS + 1:
        raise UserError(
            f"the model has {model.config.text.vocab_size} word vectors and CLIP's vocabulary {EOS + 1} tokens: "
            "there is no tokenizer to export with it"
        )
    bpe = SimpleTokenizer()
    vocabulary = dict(bpe.encoder)
    for special, theirs in (("<|startoftext|>", BOS), ("<|endoftext|>", EOS)):
        vocabulary.pop(bpe.decoder[theirs])
        vocabulary[special] = theirs
    merges = [pair for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=model.config.text.context_length)
