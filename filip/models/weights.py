"""Save and load a trained model as one self-contained file: safetensors, configuration in the metadata."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from filip.common.errors import UserError, plain
from filip.common.files import replacing
from filip.models.config import ModelConfig, config_from_dict
from filip.models.dual_encoder import DualEncoder, build_model
from filip.text.json_tokenizer import JsonTokenizer

EMBEDDING, ROWS = "text.token_embedding.weight", "text.token_embedding.rows"
ROW_OF_TOKEN = "text.row_of_token"  # of an export for other libraries: int32 [tokens]
TOKENIZER = "tokenizer.json"  # key for the tokenizer in a file with another vocabulary than CLIP's


def save_model(
    path: str | Path, model: DualEncoder, extra: dict[str, Any] | None = None, state: dict[str, Any] | None = None
) -> None:
    """Write ``model`` (or ``state``, its state dict gathered elsewhere) as float32, atomically.

    ``extra`` is anything JSON can hold (run, step, metrics), read back by :func:`read_extra`.
    """
    tensors = model.state_dict() if state is None else state
    contiguous = {
        name: t.detach().to("cpu", torch.float32 if t.is_floating_point() else t.dtype).contiguous()
        for name, t in tensors.items()
    }
    metadata = {"config": json.dumps(dataclasses.asdict(model.config)), "extra": json.dumps(extra or {})}
    write_safetensors(contiguous | _tokenizer_of(model), path, metadata)


def save_compact(path: str | Path, model: DualEncoder, extra: dict[str, Any] | None = None) -> int:
    """Write ``model`` in float16, without the embeddings that :func:`taught` takes for untrained, atomically.

    :func:`load_model` reads it; those embeddings are zero then. Returns how many were not zero before. Nine tenths of
    the demo's vocabulary are noise, which is also most of the model.
    """
    state = model.state_dict()
    embedding = state.pop(EMBEDDING)
    rows = taught(embedding)
    state |= {EMBEDDING: embedding[rows], ROWS: rows.nonzero()[:, 0].to(torch.int32)}
    half = {
        name: tensor.detach().cpu().to(torch.float16 if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in state.items()
    }
    metadata = {"config": json.dumps(dataclasses.asdict(model.config)), "extra": json.dumps(extra or {})}
    write_safetensors(half | _tokenizer_of(model), path, metadata)
    return int(embedding[~rows].any(dim=1).sum())


def _tokenizer_of(model: DualEncoder) -> dict[str, torch.Tensor]:
    """Return the bytes of the model's tokenizer.json as a tensor; nothing for CLIP's, which every installation has."""
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, JsonTokenizer):
        return {}
    return {TOKENIZER: torch.frombuffer(bytearray(tokenizer.json.encode()), dtype=torch.uint8)}


def write_safetensors(tensors: dict[str, torch.Tensor], path: str | Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically. Raises OSError with the file's name if the disk is full."""
    with replacing(path, shared=True) as part:
        save_file(tensors, part, metadata)
        part.chmod(0o644)  # safetensors lets only the owner read; colleagues evaluate models, too


def load_model(path: str | Path, image_size: int | None = None) -> DualEncoder:
    """Load the model saved in ``path``, in float32, on the CPU and in evaluation mode.

    With ``image_size`` its position embeddings are interpolated to that input size. UserError if the file is missing or
    not ours.
    """
    metadata, state = _read(path)
    tokenizer = state.pop(TOKENIZER, None)
    config = config_from_dict(_json(path, metadata["config"]))
    if ROWS in state:
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        rows, values = state.pop(ROWS).long(), state[EMBEDDING]
        state[EMBEDDING] = values.new_zeros(config.text.vocab_size, values.shape[1]).index_copy_(0, rows, values)
    with torch.device("meta"):
        model = build_model(config)
    if any(True for _ in model.buffers()):
        model = build_model(config)  # buffers that are not in the file would stay without memory
    expected = model.state_dict()
    if difference := _difference(expected, state):
        raise UserError(f"{path} does not fit its configuration: {difference}")
    model.load_state_dict(state, assign=True)
    if tokenizer is not None:
        model.json_tokenizer = JsonTokenizer(tokenizer.numpy().tobytes().decode(), f"the tokenizer in {path}")
    if image_size is not None and image_size != config.image.image_size:
        model.resize_images(image_size)
    return model.eval()


def read_extra(path: str | Path) -> dict[str, Any]:
    """Return the ``extra`` that was given to :func:`save_model`."""
    return _json(path, _read(path, tensors=False)[0].get("extra", "{}"))


def _json(path: str | Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: the configuration in its metadata is damaged ({error})") from error
    return cast(dict[str, Any], content)


def _difference(expected: dict[str, torch.Tensor], actual: dict[str, torch.Tensor]) -> str:
    """Describe the first missing, unexpected or mis-shaped tensor of a state dict; "" if it fits."""
    for names, verb in ((expected.keys() - actual.keys(), "lacks"), (actual.keys() - expected.keys(), "also has")):
        if names:
            return f"it {verb} {sorted(names)[0]}, of {len(names)} tensors in all"
    for name, tensor in expected.items():
        if tensor.shape != actual[name].shape:
            return f"{name} is {list(actual[name].shape)} and should be {list(tensor.shape)}"
    return ""


def _read(path: str | Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except OSError as error:
        raise UserError(f"cannot read the model {path}: {plain(error)}") from error
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file, or is damaged ({error})") from error
    if "config" not in metadata:  # a folder that was exported to transformers, and may have been trained there
        about = Path(path).with_name("config.json")
        settings = _json(about, about.read_text(encoding="utf-8")) if about.is_file() else {}
        if settings.get("model_type") != "filip":
            raise UserError(
                f"{path} is a safetensors file without a model configuration; give the file that training wrote (out=…)"
            )
        settings.get("text", {}).pop("token_rows", None)
        fields = {field.name for field in dataclasses.fields(ModelConfig)} & settings.keys()
        metadata = {**metadata, "config": json.dumps({name: settings[name] for name in fields})}
        state = {name.removeprefix("towers."): tensor for name, tensor in state.items()}
        if ROW_OF_TOKEN in state:
            state[EMBEDDING] = state[EMBEDDING][state.pop(ROW_OF_TOKEN).long()]
        state = {name: tensor.float() for name, tensor in state.items()}
    return metadata, state


def taught(embedding: Tensor) -> Tensor:
    """Return bool ``[tokens]``: which rows of a token embedding differ from their initial values.

    Most tokens of CLIP's vocabulary never occur in a small training, and an optimiser scales their rows at most, all by
    one factor (weight decay). So they are still draws from one normal distribution, and their norms spread by
    1 / sqrt(2 width) of their mean; a row that has been trained is outside, unless by less than about 3 / sqrt(width)
    of its length, as after a few hundred steps at a small rate. If most rows are not alike in this way, as in a model
    trained on everything, all count as taught.
    """
    norms = embedding.detach().float().norm(dim=1)
    if float(norms.median()) == 0:  # a compact file, which leaves them out
        return norms > 0
    spread = (2 * embedding.shape[1]) ** -0.5
    distance = (norms / norms.median().clamp(min=1e-12) - 1).abs()
    alike = distance < 4.5 * spread
    measured = float(distance[alike].square().mean().sqrt())
    if alike.float().mean() < 0.5 or not 0.7 * spread < measured < 1.4 * spread:
        return torch.ones(len(norms), dtype=torch.bool)
    return ~alike
