"""Look up how common a word is in a language, in wordfreq's lists, with a tenth of the memory of a dictionary."""

from __future__ import annotations

from functools import cache, lru_cache

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
    if name not in wordfreq.available_languages():
        return None
    hashes: list[np.ndarray] = []
    values: list[np.ndarray] = []
    # by 1/10 of a decibel, from the most common
    for rank, words in enumerate(wordfreq.get_frequency_list(name)):
        hashes.append(np.fromiter(map(hash, words), np.int64, len(words)))
        values.append(np.full(len(words), max(9 - rank / 100, UNKNOWN), np.float32))
    wordfreq.get_frequency_list.cache_clear()  # it would keep every word as a string: 25 MB a language
    joined, frequencies = np.concatenate(hashes), np.concatenate(values)
    order = np.argsort(joined)
    return joined[order], frequencies[order]
