"""Write our file: safetensors with the model's configuration, float32 as a finished training writes it, or compact."""

from __future__ import annotations

from filip.models import save_model
from filip.models.weights import save_compact
from filip.runs.source import Source


def write_safetensors(source: Source, out: str) -> None:
    """Write one file for ``filip.load``, ``filip eval`` and ``init_from=``."""
    save_model(out, source.model, source.extra)


def write_compact(source: Source, out: str) -> None:
    """Write the same in float16, without the embeddings of tokens that the training never saw."""
    save_compact(out, source.model, source.extra)
