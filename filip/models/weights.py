"""A trained model as one self-contained file: float32 safetensors with the configuration in the metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from filip.errors import UserError
from filip.models.config import config_from_dict, migrated
from filip.models.dual_encoder import LOSS_PARAMETER, DualEncoder, build_model


def save_model(
    path: str | Path,
    model: DualEncoder,
    extra: dict[str, Any] | None = None,
    state: dict[str, Any] | None = None,
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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    save_file(contiguous, temporary, metadata)
    temporary.chmod(0o644)  # safetensors lets only the owner read; colleagues evaluate models, too
    os.replace(temporary, path)


def load_model(path: str | Path, image_size: int | None = None, loss_parameters: bool = False) -> DualEncoder:
    """The model saved in ``path``, in float32, on the CPU and in evaluation mode.

    With ``image_size`` its position embeddings are interpolated to that input size. ``loss_parameters``: with those
    that terms of the loss have learned, for further training. UserError if the file is missing or not one of ours.
    """
    metadata, state = _read(path)
    of_loss = pop_loss_parameters(state)
    config = config_from_dict(migrated(json.loads(metadata["config"])))
    with torch.device("meta"):
        model = build_model(config)
    if any(True for _ in model.buffers()):
        model = build_model(config)  # buffers that no file holds would stay without memory
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit its own configuration: {error}") from error
    if image_size is not None and image_size != config.image.image_size:
        model.resize_images(image_size)
    if loss_parameters:
        model.set_loss_parameters(of_loss)
    return model.eval()


def pop_loss_parameters(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Take what belongs to the loss out of a state dict; see :meth:`DualEncoder.set_loss_parameters`."""
    names = [name for name in state if name.startswith(LOSS_PARAMETER)]
    return {name.removeprefix(LOSS_PARAMETER): state.pop(name) for name in names}


def read_extra(path: str | Path) -> dict[str, Any]:
    """The ``extra`` that was given to :func:`save_model`."""
    return json.loads(_read(path, tensors=False)[0]["extra"])


def _read(path: str | Path, tensors: bool = True) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the model {path}: {error}") from error
    if "config" not in metadata:
        raise UserError(
            f"{path} is a safetensors file without a model configuration; give the file that training wrote "
            "(out=…)"
        )
    return metadata, state
