"""Apply lists of names and words, one a line: person names become ``<person>``, sensitive words mark a caption.

Both rules are off by default: the paper's camera-ready applies them, but its lists were never published.
"""

from __future__ import annotations

import re
from pathlib import Path

from filip.errors import UserError

PERSON = "<person>"
_WORD = re.compile(r"[^\W_]+")


class WordList:
    """A set of words and short phrases, found in a text regardless of case and on word borders only."""

    def __init__(self, entries: list[str]) -> None:
        self.phrases = {tuple(w.lower() for w in _WORD.findall(entry)) for entry in entries} - {()}
        self.longest = max((len(phrase) for phrase in self.phrases), default=0)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character ranges of the entries in ``text``, longest first at each place, not overlapping."""
        words = list(_WORD.finditer(text))
        lowered = [word.group().lower() for word in words]
        found, at = [], 0
        while at < len(words):
            for length in range(min(self.longest, len(words) - at), 0, -1):
                if tuple(lowered[at : at + length]) in self.phrases:
                    found.append((words[at].start(), words[at + length - 1].end()))
                    at += length - 1
                    break
            at += 1
        return found

    def found_in(self, text: str) -> bool:
        return bool(self.spans(text))

    def replaced(self, text: str, replacement: str = PERSON) -> str:
        """Return ``text`` with every entry, and every run of adjacent entries, replaced once."""
        spans = self.spans(text)
        merged: list[tuple[int, int]] = []
        for start, end in spans:
            if merged and not text[merged[-1][1] : start].strip():
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        for start, end in reversed(merged):
            text = text[:start] + replacement + text[end:]
        return text


def read_word_list(path: str | None, key: str) -> WordList | None:
    """Read the list at ``path`` (UTF-8, one entry a line, # starts a comment); None if ``path`` is None."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"text_rules.{key} names {path}, which does not exist: one entry a line, UTF-8")
    lines = Path(path).read_text().splitlines()
    return WordList([line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")])
