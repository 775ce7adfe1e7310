"""Round the tokens of images to 8 bits, and score them all at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

DTYPES = ("float32", "float16", "int8")
# bytes of stored tokens that are multiplied at a time: with fewer, the threads wait for each other
BLOCK = 128 << 20


def token_type(dtype: str, dim: int) -> np.dtype:
    """Return the type of a stored token: its values, and for int8 their factor."""
    values = ("values", dtype, (dim,))
    return np.dtype([values, ("scale", "<f4")] if dtype == "int8" else [values])


def rounded(tokens: Tensor, dtype: str) -> np.ndarray:
    """Return unit vectors [..., d] as stored tokens [...]; int8 ones have length 1 as well."""
    stored = np.empty(tokens.shape[:-1], token_type(dtype, tokens.shape[-1]))
    if dtype == "int8":
        whole = (tokens * (127 / tokens.abs().amax(-1, keepdim=True).clamp(min=1e-12))).round()
        stored["scale"] = (1 / whole.norm(dim=-1).clamp(min=1e-12)).numpy()
        tokens = whole
    stored["values"] = tokens.numpy()
    return stored


def restored(stored: np.ndarray) -> Tensor:
    """Return stored tokens [...] as float32 [..., d]."""
    values = stored["values"].astype(np.float32)
    if "scale" in (stored.dtype.names or ()):
        values *= stored["scale"][..., None]
    return torch.from_numpy(values)


def quick_scores(stored: np.ndarray, words: Tensor) -> Tensor:
    """Return s^T of one text for all stored int8 tokens, to about 0.001 of a cosine, without making floats of them.

    stored: [images, n1]. words: float32 [t, d]. The words are rounded to 7 bits, since CPUs without VNNI add pairs of
    products in 16 bits. Returns float32 [images].
    """
    count, dim = stored.shape[1], words.shape[1]
    scale = words.abs().amax(1).clamp(min=1e-12) / 63
    whole = (words / scale[:, None]).round().to(torch.int8).T
    scores = []
    step = max(1, BLOCK // (count * stored.dtype.itemsize))
    for start in range(0, len(stored), step):
        block = stored[start : start + step]
        values = torch.from_numpy(block["values"].reshape(-1, dim))
        products = torch._int_mm(values, whole).view(len(block), count, -1)
        cosines = products * torch.from_numpy(np.ascontiguousarray(block["scale"]))[..., None]
        scores.append((cosines.amax(1) * scale).mean(1))
    return torch.cat(scores)
