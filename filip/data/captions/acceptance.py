"""Rules that accept back-translations as alternatives to the original caption.

A round trip that returns the caption itself adds nothing; one that loses a number or a name, or runs into a loop,
says something else. A small model also has favourite sentences: to "flag: Chad" and a dozen others it answers
"Flag of the United States"; that shows only over the whole data set.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from filip.data.lists.language import are_english
from filip.words import plain, words_of

# Many different captions with one back-translation: a favourite of the model, not a paraphrase.
MAX_ORIGINALS = 3
LENGTH_RATIO = 2.0  # characters of the longer text / of the shorter ...
LENGTH_SLACK = 10  # ... unless they differ by no more than this: "cat" → "a small cat" is a paraphrase
LOOP = 3  # a word that the original has n times may occur n + LOOP - 1 times
TITLE_CASE = 0.6  # captions with a larger share of capitalised words are titles: capitals mean nothing there
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]['\"”’)\]]*\s+$")
_NUMBER = re.compile(r"\d+")
_GROUPED = re.compile(r"(?<=\d)[.,](?=\d{3}\b)")
NUMBER_WORDS = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve".split(),  # noqa: SIM905
        map(str, range(13)),
        strict=True,
    )
)


def rejections(originals: Sequence[str], translations: Sequence[str]) -> list[str | None]:
    """Return the reason why each translation may not replace its original, or None where it may."""
    reasons = [_by_words(*pair) for pair in zip(originals, translations, strict=True)]
    # by far the slowest rule, so it runs last and in one batch
    left = [i for i, reason in enumerate(reasons) if reason is None]
    for i, english in zip(left, are_english([translations[i] for i in left]), strict=True):
        if not english:
            reasons[i] = "not_english"
    return reasons


def rejection(original: str, translation: str) -> str | None:
    """Return the result of :func:`rejections` for one pair."""
    return rejections([original], [translation])[0]


def _by_words(original: str, translation: str) -> str | None:
    """Apply all rules except the one about the language."""
    translated_words = words_of(translation)
    if not translated_words:
        return "empty"
    # half of all translations equal the caption
    original_words = translated_words if translation == original else words_of(original)
    if translated_words == original_words:
        return "identical"
    if abs(len(translation) - len(original)) > LENGTH_SLACK:
        if len(translation) > LENGTH_RATIO * len(original):
            return "too_long"
        if len(original) > LENGTH_RATIO * len(translation):
            return "too_short"
    if loops(original_words, translated_words):
        return "repetitive"
    if _NUMBER.search(original) or not NUMBER_WORDS.keys().isdisjoint(original_words):
        ones = Counter({NUMBER_WORDS["one"]: plain(original).split().count("one")})  # "one" may become "a"
        if numbers(original) - ones - numbers(translation):
            return "number_lost"
    # most captions have no capitals and thus no names
    if original != original.lower():
        folded = _fold(translation)
        if any(name not in folded for name in names(original)):
            return "name_lost"
    return None


def numbers(text: str) -> Counter[str]:
    """Return the numbers in a text: "two" and "2" are the same, "1,000" is 1000."""
    digits = _NUMBER.findall(_GROUPED.sub("", text))
    words = [NUMBER_WORDS[word] for word in plain(text).split() if word in NUMBER_WORDS]
    return Counter([number.lstrip("0") or "0" for number in digits]) + Counter(words)


def names(text: str) -> list[str]:
    """Return the capitalised words inside a sentence, in plain lower-case letters; none for a title or an exclamation.

    The first word of a sentence is capitalised in any case: "A wheel! Put the brake on" names nobody.
    """
    words = list(_WORD.finditer(text))
    capitalised = [word for word in words if word[0][0].isupper()]
    if len(words) > 3 and len(capitalised) > TITLE_CASE * len(words):
        return []
    inside = [word for word in capitalised if word is not words[0] and len(word[0]) > 1]
    return [_fold(word[0]) for word in inside if not _SENTENCE_END.search(text[: word.start()])]


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def loops(original_words: list[str], translated_words: list[str]) -> bool:
    """Return whether a word occurs much more often than in the original."""
    if len(translated_words) - len(set(translated_words)) < LOOP - 1:
        return False  # no word occurs often enough
    before, after = Counter(original_words), Counter(translated_words)
    return any(count >= before[word] + LOOP for word, count in after.items())
