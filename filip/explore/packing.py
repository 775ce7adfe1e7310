"""Pack unit vectors as 8-bit integers with a scale each, and binary arrays as text, for the page."""

from __future__ import annotations

import base64

import numpy as np
import torch
from torch import Tensor

DAMPING = 0.1  # share of the mean second moment: keeps it invertible if `against` spans few directions


def pack(vectors: Tensor, against: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pack ``[n, d]`` float into (int8 ``[n, d]``, float32 ``[n]``): a vector is its integers times its scale.

    The largest component of each vector becomes 127. Plain rounding puts a component off by at most half a step.
    against: vectors ``[m, d]``; the products with them matter. Then components are rounded one after the other, and
    the error of each is carried into the later ones so that the products change least: the update of GPTQ (Frantar et
    al., 2022, equation 3) with the second moment of ``against`` for its Hessian. The demo's scores come out four times
    as close, which is what keeps the first image of a ranking the first.
    """
    scales = vectors.abs().amax(-1).clamp(min=1e-12) / 127
    if against is None:
        return (vectors / scales[:, None]).round().to(torch.int8), scales.float()
    left = vectors.double() / scales[:, None]  # the values still to be rounded, in steps
    moment = against.double().T @ against.double()
    moment += DAMPING * moment.diagonal().mean().clamp(min=1e-12) * torch.eye(len(moment), dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    for column in range(left.shape[1]):
        exact = left[:, column].clone()
        left[:, column] = exact.round().clamp(-127, 127)
        error = (exact - left[:, column]) / factor[column, column]
        left[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    return left.to(torch.int8), scales.float()


def base64_of(array: Tensor | np.ndarray) -> str:
    """Return the bytes of an array, little-endian, as base64."""
    values = np.ascontiguousarray(array.cpu().numpy() if isinstance(array, Tensor) else array)
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()).decode("ascii")


def packed(vectors: Tensor, against: Tensor) -> dict[str, str]:
    """Return ``[n, d]`` float as the page reads it: ``values`` (int8) and ``scales`` (float32)."""
    integers, scales = pack(vectors, against)
    return {"values": base64_of(integers), "scales": base64_of(scales)}
