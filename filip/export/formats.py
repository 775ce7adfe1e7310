"""Registry of the formats by the name that ``to=`` gives them. A new one is an entry of :data:`FORMATS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from filip.common.progress import say
from filip.export.hf_folder import write_hf, write_multi_vector
from filip.export.onnx_folder import write_onnx
from filip.models import save_model
from filip.models.weights import save_compact
from filip.runs.source import ModelSource


@dataclass(frozen=True)
class Format:
    """A format to export to.

    write  takes the source and ``out``, and raises UserError if the format cannot hold the model
    out    "file" or "folder", written at ``out``
    """

    write: Callable[[ModelSource, str], None]
    out: str = "folder"


def write_safetensors(source: ModelSource, out: str) -> None:
    """Write one file for ``filip.load``, ``filip eval`` and ``init_from=``, as a finished training does."""
    save_model(out, source.model, source.to_save)


def write_compact(source: ModelSource, out: str) -> None:
    """Write the same in float16, without the embeddings that look untrained; say how many these are."""
    if left_out := save_compact(out, source.model, source.to_save):
        say(
            f"left out {left_out:,} of {source.model.config.text.vocab_size:,} token embeddings, as long as untrained "
            "ones; after a short training these may be trained, too: to=safetensors keeps all"
        )


FORMATS: dict[str, Format] = {
    "safetensors": Format(write_safetensors, "file"),
    "compact": Format(write_compact, "file"),
    "hf": Format(write_hf),
    "mv": Format(write_multi_vector),
    "onnx": Format(write_onnx),
}
