"""How the authors of a family of models evaluate it: with which prompts, and what they average over them.

A model is scored by its own protocol unless the command line says otherwise, so that a CLIP's row holds the numbers
that are published for it. A card names its entry in a prompt file; the file is the family's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml

from filip import resources

if TYPE_CHECKING:
    from filip.eval.benchmark import BenchmarkCard

AUTO = "auto"  # by the family of the model
PROMPTS = "eval/prompts.yaml"
CLIP_PROMPTS = "eval/prompts_clip.yaml"


@dataclass(frozen=True)
class Family:
    """A family's protocol. prompts: its file. ensemble: "score" (mean of scores) or "embedding" (mean vector).

    A token-wise score has no mean vector: there the ensemble is that of scores in any case.
    """

    prompts: str
    ensemble: str


# SigLIP's evaluator (big_vision, discriminative_classifier.py, read in November 2026) averages the vectors of CLIP's
# templates, too; it lower-cases them and drops their punctuation, as SigLIP's tokenizer in transformers does by itself.
FAMILIES = {
    "filip": Family(PROMPTS, "score"),
    "clip": Family(CLIP_PROMPTS, "embedding"),
    "siglip": Family(CLIP_PROMPTS, "embedding"),
}


def prompts_for(family: str, card: BenchmarkCard) -> str:
    """Return the prompt file of a card for a family of models; :data:`PROMPTS` if the family's lacks the card."""
    own = FAMILIES[family].prompts
    content = _content(own)
    known = card.prompts in content or card.prompts in content.get("retrieval", {})
    return own if card.prompts is None or known else PROMPTS


@cache
def _content(file: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(resources.find("prompts", file).read_text(encoding="utf-8"))
    return found
