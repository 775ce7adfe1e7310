"""Split captions into words, and list English ones that name nothing: the others are nouns, adjectives and verbs."""

from __future__ import annotations

import re

_FUNCTION_WORDS = (
    "a about above across after against all along also am among an and another any are around as at away back "
    "be been before behind being below beside besides between beyond both but by can close could did do does "
    "doing down during each either every far few for from front get gets got had has have having he her here "
    "hers him his how i if in inside into is it its itself just left like many me more most much my near next "
    "no nor not of off on one only onto or other our out outside over own photo picture image right same see "
    "seen she show showing shown shows so some such than that the their theirs them then there these they this "
    "those through to together too top toward towards under until up upon us very was we were what when where "
    "which while who whom whose will with within without would you your "
)
FUNCTION_SIGNS = "的了着在是和与或被"  # Chinese ones, which no space parts from other words
FUNCTION_WORDS = frozenset([*_FUNCTION_WORDS.split(), *FUNCTION_SIGNS])

_PLAIN = re.compile(r"[^\W_]+")


def plain(text: str) -> str:
    """Return the lower-cased words with single spaces: texts with the same plain form mean the same."""
    return " ".join(words_of(text))


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    text = text.casefold()
    words = text.split()
    # many captions have no punctuation, for which the slower pattern would find the same
    return words if "".join(words).isalnum() else _PLAIN.findall(text)
