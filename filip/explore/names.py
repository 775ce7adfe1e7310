"""Read a text as a search does: its names of things, the words that a model never learned, the tokens that count.

A search counts the tokens of words that name something and that the training had; the page of a file computes the same
(``assets/tokenizer.js``).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from filip.common.errors import UserError
from filip.eval.encoders import Encoder, FilipEncoder
from filip.eval.pointing import name_prompts
from filip.eval.scorer import Scorer, Texts
from filip.eval.text_tokens import kept_tokens
from filip.eval.word_patch import Prompt, label_tokens
from filip.text.words import FUNCTION_SIGNS, FUNCTION_WORDS

MOST = 8  # the page has so many colours
FEWEST_TAUGHT = 10  # tokens: a model with fewer was not trained, and none of its words is singled out


class NothingKnownError(UserError):
    """A text has no word that the model learned."""


def named_things(encoder: Encoder, text: str, things: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return ``[{"label": "slot machine", "tokens": [9, 10]}, …]``: positions in ``encoder.tokens(text)``, in order.

    things: known names of the text. Without them, or if it does not name them all, every word that is not a
    function word counts as a name.
    """
    prompts = _known(text, things)
    return _labelled(encoder, prompts or _words(text))[:MOST]


def learned_tokens(encoder: Encoder) -> Tensor | None:
    """Return which tokens of CLIP's vocabulary a model of this project has learned, bool [tokens]; None: unknown.

    Of a checkpoint it is unknown: while it learns, the embedding's rows differ too little from their initial values.
    """
    model: Any = encoder.model if isinstance(encoder, FilipEncoder) and not encoder.checkpoint else None
    if model is None or not model.config.text.like_clip:
        return None
    rows = _taught(model.text.token_embedding.weight)
    return rows if int(rows.sum()) >= FEWEST_TAUGHT else None


@lru_cache(maxsize=4)  # once for a model, not for every caption of a page
def _taught(embedding: Tensor) -> Tensor:
    from filip.models.weights import taught  # filip.models imports timm, which whoever has a model has imported

    return taught(embedding)


def unknown_words(encoder: Encoder, text: str) -> list[dict[str, Any]]:
    """Return the words of a text with a token that the model's training never had, as :func:`named_things` does.

    Every word of a model of another project is known.
    """
    rows = learned_tokens(encoder)
    if rows is None:
        return []
    assert isinstance(encoder, FilipEncoder)
    ids = encoder.model.tokenizer.tokenize([text], encoder.context_length)[0][0].tolist()
    words = _labelled(encoder, _words(text, signs=True))
    return [word for word in words if not all(rows[ids[token]] for token in word["tokens"])]


def counted_tokens(encoder: Encoder, text: str, choice: str = "content", caption: bool = False) -> list[bool]:
    """Return for each of ``encoder.tokens(text)`` whether a search counts it.

    choice: see :mod:`filip.eval.text_tokens`. caption: the text is a picture's caption, which is ranked in any case.
    Where the model learned none of its words, all count; any other such text raises NothingKnownError.
    """
    unknown = unknown_words(encoder, text)
    left_out = {token for word in unknown for token in word["tokens"]}
    mask = kept_tokens(text, encoder.tokens(text), choice)
    counted = [token and place not in left_out for place, token in enumerate(mask)]
    if unknown and not any(counted[1:-1]):
        if caption:
            return mask
        raise NothingKnownError(f"the model never learned {listed(unknown)}, so it cannot look for it")
    return counted


def encode_query(scorer: Scorer, text: str, choice: str = "content", caption: bool = False) -> Texts:
    """Encode a text with the tokens that a search counts; a pooled model counts all. Errors: counted_tokens."""
    encoded = scorer.encode_texts([text]).to("cpu")
    counted = counted_tokens(scorer.encoder, text, choice, caption)
    if encoded.lengths is None:
        return encoded
    length = int(encoded.lengths[0])
    if len(counted) == length + 2:  # a model that leaves its ends out by itself
        counted = counted[1:-1]
    mask = encoded.lengths.new_tensor(counted[:length] + [False] * (length - len(counted))).bool()
    return encoded.only(mask, mask.sum()[None])


def listed(words: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"“{word['label']}”" for word in words)


def _labelled(encoder: Encoder, prompts: Sequence[tuple[str, Prompt]]) -> list[dict[str, Any]]:
    labelled = [{"label": label, "tokens": label_tokens(encoder, prompt, label)} for label, prompt in prompts]
    # the tokenizer may have cut the text before a word
    return sorted((word for word in labelled if word["tokens"]), key=lambda word: word["tokens"][0])


def _known(text: str, things: Sequence[str]) -> list[tuple[str, Prompt]]:
    try:
        return list(zip(things, name_prompts(text, things), strict=True))
    except UserError:
        return []


def _words(text: str, signs: bool = False) -> list[tuple[str, Prompt]]:
    """Return the words of a text that are no function words. signs: also runs of signs, such as an emoji."""
    words = re.finditer(rf"[^\W{FUNCTION_SIGNS}]+(?:['’]\w+)*" + (r"|[^\w\s]+" if signs else ""), text)
    naming = [word for word in words if re.split("['’]", word.group().lower())[0] not in FUNCTION_WORDS]
    spoken = [word for word in naming if not all(unicodedata.category(letter)[0] == "P" for letter in word.group())]
    return [(word.group(), Prompt(text[: word.start()], text[word.end() :])) for word in spoken]
