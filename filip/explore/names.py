"""Find the tokens of a text that name a thing: each name has one colour wherever the page shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from filip.errors import UserError
from filip.eval.encoders import Encoder
from filip.eval.pointing import name_prompts
from filip.eval.prompts import Prompt
from filip.eval.word_patch import label_tokens
from filip.words import FUNCTION_WORDS

MOST = 8  # the page has so many colours


def named_things(encoder: Encoder, text: str, things: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return ``[{"label": "slot machine", "tokens": [9, 10]}, …]``: positions in ``encoder.tokens(text)``, in order.

    things: what the text is known to name. Without them, or if it does not name them all, every word that is not a
    function word counts as a name.
    """
    prompts = _known(text, things) or _content_words(text)
    found: list[dict[str, Any]] = []
    for label, prompt in prompts:
        tokens = label_tokens(encoder, prompt, label)
        if tokens:  # the tokenizer may have cut the text before it
            found.append({"label": label, "tokens": tokens})
    return sorted(found, key=lambda name: name["tokens"][0])[:MOST]


def _known(text: str, things: Sequence[str]) -> list[tuple[str, Prompt]]:
    try:
        return list(zip(things, name_prompts(text, things), strict=True))
    except UserError:
        return []


def _content_words(text: str) -> list[tuple[str, Prompt]]:
    words = [m for m in re.finditer(r"\w+(?:['’]\w+)*", text) if m.group().lower() not in FUNCTION_WORDS]
    return [(word.group(), Prompt(text[: word.start()], text[word.end() :])) for word in words]
