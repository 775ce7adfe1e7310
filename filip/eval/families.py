"""Evaluate a family of models as its authors do: with their prompts and averages.

A model is scored by its own protocol unless the command line changes that, so that a CLIP's row holds the numbers
that are published for it. A card names its entry in a prompt file; the file is the family's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filip import resources
from filip.common.errors import UserError
from filip.common.files import file_state

if TYPE_CHECKING:
    from filip.eval.benchmark import BenchmarkCard

AUTO = "auto"  # by the family of the model
PROMPTS = "eval/prompts.yaml"
CLIP_PROMPTS = "eval/prompts_clip.yaml"


@dataclass(frozen=True)
class Family:
    """A family's protocol. prompts: its file. ensemble: "score" (mean of scores) or "embedding" (mean vector).

    A token-wise score has no mean vector: there the ensemble is of_tokens, "score" or "probability". similarity: by
    which a token-wise model of the family compares an image with texts of any length
    (:data:`filip.eval.scorer.RANKINGS`). own_data: the prompt for classes without a card's; "": English.
    """

    prompts: str
    ensemble: str
    similarity: str = "mean"
    of_tokens: str = "score"
    own_data: str = ""


# SigLIP's evaluator (big_vision, discriminative_classifier.py, read in November 2026) averages the vectors of CLIP's
# templates, too; it lower-cases them and drops their punctuation, as SigLIP's tokenizer in transformers does by itself.
FAMILIES = {
    "filip": Family(PROMPTS, "score"),
    "wukong": Family(PROMPTS, "embedding", of_tokens="probability", own_data="{c}"),
    "retriever": Family(PROMPTS, "score", "text"),  # a mean or a sum over the tokens of a query
    "clip": Family(CLIP_PROMPTS, "embedding"),
    "siglip": Family(CLIP_PROMPTS, "embedding"),
}


def prompts_for(family: str, card: BenchmarkCard) -> str:
    """Return a family's prompt file for a card, :data:`PROMPTS` if it lacks the card, or its prompt for own data."""
    file, own_data = FAMILIES[family].prompts, FAMILIES[family].own_data
    if own_data and card.prompts is None and card.kind == "classification":
        return own_data
    content = prompt_file(file)
    has_entry = card.prompts in content or card.prompts in content.get("retrieval", {})
    return file if card.prompts is None or has_entry else PROMPTS


def prompt_file(path: str | Path) -> dict[str, Any]:
    """Return the content of a prompt file, read once and not to be changed. UserError if it cannot be used."""
    file = resources.find("prompts", path)
    return _content(file, file_state(file))


@lru_cache(maxsize=8)
def _content(file: Path, state: tuple[int, int] | None) -> dict[str, Any]:
    content = resources.read_yaml(file)
    if not isinstance(content, dict):
        raise UserError(f"{file} has no prompts: it should hold `key: value` lines, as eval/prompts.yaml does")
    return content
