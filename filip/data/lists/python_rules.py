"""Text rules that need Python rather than SQL, by the name under which the funnel counts what they drop.

A rule is one function here: captions and settings in, True for each caption that it drops out.

    @python_rule("shouting", applies=lambda settings: settings.no_shouting)
    def shouting(captions, settings): return [caption.isupper() for caption in captions]

It runs in worker processes over the distinct, normalised captions. The order is that in which a caption is charged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filip.data.cards import TextRuleSettings
from filip.data.lists.language import are_english, are_in
from filip.errors import UserError

Drops = Callable[[Sequence[str], TextRuleSettings], Sequence[bool]]
PERSON = "<person>"
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class PythonRule:
    """A rule: ``drops`` is called if ``applies``, so a rule that a card has switched off is not run."""

    applies: Callable[[TextRuleSettings], bool]
    drops: Drops


PYTHON_RULES: dict[str, PythonRule] = {}


def python_rule(name: str, applies: Callable[[TextRuleSettings], bool]) -> Callable[[Drops], Drops]:
    """Register a rule under ``name``; ``applies`` tells from a card's settings whether it is on."""

    def register(drops: Drops) -> Drops:
        PYTHON_RULES[name] = PythonRule(applies, drops)
        return drops

    return register


def active_rules(settings: TextRuleSettings) -> dict[str, PythonRule]:
    """Return the rules that these settings switch on."""
    return {name: rule for name, rule in PYTHON_RULES.items() if rule.applies(settings)}


@python_rule("not_english", applies=lambda settings: settings.language in (True, ["en"]))
def not_english(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    return [not english for english in are_english(captions)]


@python_rule("other_language", applies=lambda settings: settings.language not in (True, False, ["en"]))
def other_language(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    return [not wanted for wanted in are_in(captions, settings.language)]


@python_rule("sensitive", applies=lambda settings: bool(settings.sensitive_words))
def sensitive(captions: Sequence[str], settings: TextRuleSettings) -> list[bool]:
    words = read_word_list(settings.sensitive_words, "sensitive_words")
    return [words is not None and words.found_in(caption) for caption in captions]


class WordList:
    """A set of words and short phrases, found in a text regardless of case and on word borders only.

    Person names become ``<person>``, sensitive words mark a caption. Both rules are off by default: the paper's
    camera-ready applies them, but its lists were never published.
    """

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
