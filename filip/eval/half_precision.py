"""Choose the precision of an evaluation: the towers run under autocast, and tokens are held in as many bits."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from filip.common.device import evaluation_precision
from filip.common.errors import UserError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str, device: str) -> torch.dtype:
    """Return the dtype of ``precision=`` on a device.

    precision: "fp32", "bf16", "fp16" or "auto": :func:`filip.common.device.evaluation_precision`.
    Raises UserError for another word.
    """
    if precision == "auto":
        precision = evaluation_precision(torch.device(device))
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: should be auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def name_of(dtype: torch.dtype) -> str:
    """Return the inverse of :func:`dtype_of`: "fp32", "bf16" or "fp16"."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def autocast(device: str, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the towers run; an empty one in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype)
