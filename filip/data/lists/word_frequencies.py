"""Look up how common a word is in a language, in wordfreq's lists, with a tenth of the memory of a dictionary."""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import chain

import numpy as np

UNKNOWN = 1.0  # for words that a list does not have; the rarest that it has are as rare
# fastText's codes of languages that have a list under another code, or are close to a language with a list.
_ALIASES = {
    "no": "nb",
    "nn": "nb",
    "bs": "sh",
    "hr": "sh",
    "sr": "sh",
    "tl": "fil",
    "gl": "pt",
    "ast": "es",
    "af": "nl",
}


@lru_cache(maxsize=100_000)  # most words of captions are the same few; a look-up costs microseconds
def zipf(word: str, language: str) -> float | None:
    """Return log10 of how often a lower-case word occurs among 10^9 of a language; None if the language has no list."""
    found = _list_of(language)
    if found is None:
        return None
    hashes, values = found
    place = int(np.searchsorted(hashes, hash(word)))
    return float(values[place]) if place < len(hashes) and hashes[place] == hash(word) else UNKNOWN


@cache
def _list_of(language: str) -> tuple[np.ndarray, np.ndarray] | None:
    import wordfreq

    name = _ALIASES.get(language, language)
    if name not in _languages():
        return None
    by_rank = wordfreq.get_frequency_list(name)  # by 1/10 of a decibel, from the most common
    wordfreq.get_frequency_list.cache_clear()  # it would keep every word as a string: 25 MB a language
    counts = [len(words) for words in by_rank]
    hashes = np.fromiter(map(hash, chain.from_iterable(by_rank)), np.int64, sum(counts))
    values = np.maximum(9 - np.arange(len(counts)) / 100, UNKNOWN).astype(np.float32)
    order = np.argsort(hashes)
    return hashes[order], np.repeat(values, counts)[order]


@cache
def _languages() -> frozenset[str]:
    import wordfreq

    return frozenset(wordfreq.available_languages())
