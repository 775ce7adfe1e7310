"""Write our file: float32 safetensors with the model's configuration, as a finished training writes it."""

from __future__ import annotations

from filip.models import save_model
from filip.runs.source import Source


def write_safetensors(source: Source, out: str) -> None:
    """Write one file for ``filip.load``, ``filip eval`` and ``init_from=``."""
    save_model(out, source.model, source.extra)
