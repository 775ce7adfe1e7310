"""What computes the similarity, and which of them for given tokens.

A backend is a module with two functions that know nothing of autograd:

    forward(tokens, save_for_backward) -> ((s^I, s^T), residuals)
    backward(tokens, (grad s^I, grad s^T), residuals, needs) -> (grad image, grad text)

``tokens`` are :class:`filip.interaction.packing.Tokens`. ``residuals`` is a tuple of tensors whose contents only the
backend knows, and undefined unless ``save_for_backward`` is true. s^I and s^T are [b, texts]; everything but the tokens
is in the accumulation dtype (float32, or float64 for float64 tokens), the gradients too. ``needs`` says which of the
two gradients somebody wants; of the other side nothing is computed, and what is returned for it is an empty tensor.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol

import torch
from torch import Tensor

from filip.interaction import reference, tiled
from filip.interaction.packing import Pair, Residuals, Tokens

ENVIRONMENT_VARIABLE = "FILIP_INTERACTION_BACKEND"
BACKENDS = ("auto", "reference", "tiled", "native", "triton")


class Backend(Protocol):
    """What dispatch asks of a module (see above)."""

    def forward(self, tokens: Tokens, save_for_backward: bool = True, /) -> tuple[Pair, Residuals]: ...

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True), /
    ) -> Pair: ...


def choose_backend(image_tokens: Tensor, longest: int, backend: str | Backend = "auto") -> Backend:
    """The backend for ``image_tokens`` [b, n1, d] against texts of at most ``longest`` tokens.

    Only the dtype, the device and n1 are looked at, so b may be 0.

    "auto" takes the native kernel for all dtypes but float64 on CPUs, Triton for 16-bit and float32 on GPUs of
    compute capability 8.0 and newer, and otherwise the tiled backend. A notice, printed once, says why a faster
    one is not used.
    """
    if not isinstance(backend, str):
        return backend
    wanted, source = backend, "backend="
    if backend == "auto" and os.environ.get(ENVIRONMENT_VARIABLE):
        wanted, source = os.environ[ENVIRONMENT_VARIABLE], f"the environment variable {ENVIRONMENT_VARIABLE}="
    if wanted not in BACKENDS:
        raise ValueError(f"{source}{wanted!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    if wanted == "reference":
        return reference
    if wanted == "tiled":
        return tiled
    if wanted == "auto":
        return _automatic(image_tokens, longest)
    found, reason = (_native if wanted == "native" else _triton)(image_tokens, longest)
    if found is None:
        raise ValueError(f"{source}{wanted!r} cannot run here: {reason}; use 'tiled' or 'auto'")
    return found


def run_forward(module: Backend, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """``module.forward`` with autocast off: it would round the similarities to 16 bits."""
    with torch.autocast(tokens.image.device.type, enabled=False):
        return module.forward(tokens, save_for_backward)


def run_backward(
    module: Backend, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool]
) -> Pair:
    """``module.backward`` with autocast off, for callers who differentiate inside its context."""
    with torch.autocast(tokens.image.device.type, enabled=False):
        return module.backward(tokens, grads, residuals, needs)


def _automatic(image_tokens: Tensor, longest: int) -> Backend:
    for device, candidate in (("cpu", _native_by_default), ("cuda", _triton_by_default)):
        if image_tokens.device.type == device:
            found, reason = candidate(image_tokens, longest)
            if found is not None:
                return found
            if reason:
                _notice_once(f"{reason}; using the tiled PyTorch backend, which is exact but slower")
    return tiled


def _native(image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    """The compiled CPU kernels, or None and why not. The first call that they fit compiles them."""
    try:
        from filip.interaction import native
    except ImportError as error:
        return None, f"the native kernels cannot be imported ({error})"
    reason = native.unavailable_reason(image_tokens, longest)
    return (None if reason else native), reason


def _native_by_default(image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    if image_tokens.dtype == torch.float64:
        return None, ""  # as documented, so not worth a notice
    return _native(image_tokens, longest)


def _triton(image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    """The GPU kernels, or None and why not."""
    try:
        from filip.interaction import triton_backend
    except ImportError as error:
        return None, f"Triton cannot be imported ({error})"
    reason = triton_backend.unavailable_reason(image_tokens, longest)
    return (None if reason else triton_backend), reason


def _triton_by_default(image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    major, minor = torch.cuda.get_device_capability(image_tokens.device)
    if major < 8:
        return (
            None,
            f"Triton has no tensor-core path for compute capability {major}.{minor} (8.0 is the first)",
        )
    return _triton(image_tokens, longest)


_notices: set[str] = set()


def _notice_once(message: str) -> None:
    if message not in _notices and os.environ.get("RANK", "0") == "0":  # one line a job, not one a rank
        _notices.add(message)
        print(f"filip.interaction: {message}", file=sys.stderr, flush=True)
