"""Text rules that need Python rather than SQL, by the name under which the funnel counts what they drop.

A rule is one function here: captions and settings in, True for each caption that it drops out.

    @python_rule("shouting", applies=lambda settings: settings.no_shouting)
    def shouting(captions, settings): return [caption.isupper() for caption in captions]

It runs in worker processes over the distinct, normalised captions. The order is that in which a caption is charged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from filip.data.cards import TextRuleSettings
from filip.data.lists.language import are_english, are_in
from filip.data.lists.word_lists import read_word_list

Drops = Callable[[Sequence[str], TextRuleSettings], Sequence[bool]]


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
