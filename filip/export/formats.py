"""The formats by the name that ``to=`` gives them: one function each, which writes or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable

from filip.export.hf_folder import write_hf
from filip.export.multi_vector_folder import write_multi_vector
from filip.export.onnx_folder import write_onnx
from filip.export.open_clip_folder import write_open_clip
from filip.export.safetensors_file import write_safetensors
from filip.runs.source import Source

# Each takes the source and ``out``, and raises UserError if its format cannot hold the model.
FORMATS: dict[str, Callable[[Source, str], None]] = {
    "safetensors": write_safetensors,
    "hf": write_hf,
    "mv": write_multi_vector,
    "onnx": write_onnx,
    "open_clip": write_open_clip,
}
