"""The public functions on one process, and the choice of a backend.

A backend is a module with two functions that know nothing of autograd:

    forward(image_tokens [b, n1, d], text_tokens [T, d], lengths: list[int], save_for_backward: bool)
        -> (s^I, s^T, residuals)
    backward(grad s^I, grad s^T, image_tokens, text_tokens, lengths, residuals, needs: tuple[bool, bool])
        -> (grad image, grad text)

``residuals`` is a tuple of tensors whose contents only the backend knows, and undefined unless
``save_for_backward`` is true. s^I and s^T are [b, texts]; everything but the tokens is in the accumulation
dtype (float32, or float64 for float64 tokens), the gradients too. ``needs`` says which of the two gradients somebody
wants; of the other side nothing is computed, and what is returned for it is an empty tensor.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Protocol

import torch
from torch import Tensor

from filip.interaction import reference, tiled
from filip.interaction.differentiation import first_derivative_only, refuse_transforms
from filip.interaction.masking import check_mask, with_mask
from filip.interaction.packing import Similarity, check_tokens, pack_tokens

ENVIRONMENT_VARIABLE = "FILIP_INTERACTION_BACKEND"
BACKENDS = ("auto", "reference", "tiled", "native", "triton")


class Backend(Protocol):
    """What dispatch asks of a module (see above)."""

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], save_for_backward: bool = True, /
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]: ...

    def backward(
        self,
        grad_i2t: Tensor,
        grad_t2i: Tensor,
        image_tokens: Tensor,
        text_tokens: Tensor,
        lengths: list[int],
        residuals: tuple[Tensor, ...],
        needs: tuple[bool, bool] = (True, True),
        /,
    ) -> tuple[Tensor, Tensor]: ...


def late_interaction(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_mask: Tensor | None = None,
    backend: str | Backend = "auto",
) -> Similarity:
    """Token-wise similarity of every image with every text (FILIP, equations 3 to 5), differentiable.

    With f_i the n1 tokens of image i and g_j the n2_j tokens of text j,

        i2t[i, j] = mean over k of max over r of f_i[k] . g_j[r]
        t2i[i, j] = mean over k of max over r of f_i[r] . g_j[k]

    Arguments
        image_tokens  [images, n1, d], floating point; of unit length in FILIP; nothing here needs that
        text_tokens   [T, d]: the valid tokens of all texts, one text after the other, no padding
        text_lengths  [texts] integers >= 1 with sum T
        image_mask    [images, n1] boolean, true for the tokens that exist; the others take part in nothing. None: all
                      do. A mask doubles the time
        backend       "auto", "reference", "tiled", "native" or "triton"; the environment variable
                      FILIP_INTERACTION_BACKEND overrides "auto". Or a similarity in place of the maximum, such as
                      ``Blockwise(smooth_maximum(0.05))``

    Returns ``Similarity(i2t, t2i)``, each [images, texts], float32 (float64 for float64 tokens). 16-bit
    tokens are multiplied exactly and summed in float32, under autocast too.
    Gradients arrive in the dtype of the tokens; there is no second derivative. When several tokens share a
    maximum, the one with the lowest index takes the whole gradient.
    Raises ValueError for an empty batch, mismatching shapes, or a backend that is unknown or cannot run, and
    NotImplementedError inside torch.func transforms.
    """
    if image_mask is None:
        return interact(image_tokens, text_tokens, text_lengths, backend=backend)
    check_tokens(image_tokens, text_tokens, text_lengths)
    check_mask(image_tokens, image_mask)
    return with_mask(
        lambda tokens: interact(tokens, text_tokens, text_lengths, backend=backend), image_tokens, image_mask
    )


def late_interaction_padded(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    image_mask: Tensor | None = None,
    backend: str = "auto",
) -> Similarity:
    """:func:`late_interaction` for padded text: ``text_tokens`` [texts, n2, d], ``text_lengths`` [texts].

    The padding is ignored: no value and no gradient depends on it.
    """
    return late_interaction(
        image_tokens,
        pack_tokens(text_tokens, text_lengths),
        text_lengths,
        image_mask=image_mask,
        backend=backend,
    )


def interact(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    *,
    backend: str | Backend = "auto",
    dtype: torch.dtype | None = None,
    recompute: bool = False,
) -> Similarity:
    """:func:`late_interaction` of tokens rounded to ``dtype``; ``recompute`` scores again instead of saving maps.

    The gradients are not rounded with the tokens: they arrive as computed, in the dtype of the tokens passed in.
    """
    refuse_transforms("late_interaction")
    lengths = check_tokens(image_tokens, text_tokens, text_lengths)
    dtype = dtype or torch.promote_types(image_tokens.dtype, text_tokens.dtype)
    module = choose_backend(image_tokens[:0].to(dtype), max(lengths), backend)
    if not wants_gradient(image_tokens, text_tokens):
        tokens = image_tokens.to(dtype), text_tokens.to(dtype)
        return Similarity(*run_forward(module, *tokens, lengths, save_for_backward=False)[:2])
    return Similarity(*_LateInteraction.apply(image_tokens, text_tokens, lengths, module, dtype, recompute))


def choose_backend(image_tokens: Tensor, longest: int, backend: str | Backend = "auto") -> Backend:
    """The backend for ``image_tokens`` [b, n1, d] against texts of at most ``longest`` tokens.

    Only the dtype, the device and n1 are looked at, so b may be 0.

    "auto" takes the native kernel for float32 and bfloat16 on CPUs, Triton for 16-bit and float32 on GPUs of
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


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether autograd would record an operation on these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def run_forward(
    module: Backend,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    save_for_backward: bool = True,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """``module.forward`` with autocast off: it would round the similarities to 16 bits."""
    with torch.autocast(image_tokens.device.type, enabled=False):
        return module.forward(image_tokens, text_tokens, lengths, save_for_backward)


def run_backward(
    module: Backend,
    grads: tuple[Tensor, Tensor],
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    residuals: tuple[Tensor, ...],
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """``module.backward`` with autocast off, for callers who differentiate inside its context."""
    with torch.autocast(image_tokens.device.type, enabled=False):
        return module.backward(*grads, image_tokens, text_tokens, lengths, residuals, needs)


class _LateInteraction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image_tokens: Tensor,
        text_tokens: Tensor,
        lengths: list[int],
        module: Backend,
        dtype: torch.dtype,
        recompute: bool,
    ) -> tuple[Tensor, Tensor]:
        image, text = image_tokens.to(dtype), text_tokens.to(dtype)
        i2t, t2i, residuals = run_forward(module, image, text, lengths, save_for_backward=not recompute)
        ctx.save_for_backward(image, text, *(() if recompute else residuals))
        ctx.lengths, ctx.module, ctx.recompute = lengths, module, recompute
        ctx.dtypes = image_tokens.dtype, text_tokens.dtype
        return i2t, t2i

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        image, text, *saved = ctx.saved_tensors
        residuals, needs = tuple(saved), ctx.needs_input_grad[:2]
        if ctx.recompute:
            residuals = run_forward(ctx.module, image, text, ctx.lengths)[2]
        both = (grads[0], grads[1])
        found = run_backward(ctx.module, both, image, text, ctx.lengths, residuals, needs)
        return *as_input_gradients(found, needs, ctx.dtypes), None, None, None, None


def as_input_gradients(
    found: tuple[Tensor, Tensor], needs: tuple[bool, bool], dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor | None, ...]:
    """What an autograd Function returns for the tokens: the dtype of each, None where no gradient is needed."""
    return tuple(g.to(dtype) if need else None for g, need, dtype in zip(found, needs, dtypes, strict=True))


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
    if image_tokens.dtype not in (torch.float32, torch.bfloat16):
        return None, ""  # as documented, so not worth a notice
    return _native(image_tokens, longest)


def _triton(image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    """The GPU kernels, or None and why not."""
    try:
        from filip.interaction import triton_kernel
    except ImportError as error:
        return None, f"Triton cannot be imported ({error})"
    reason = triton_kernel.unavailable_reason(image_tokens, longest)
    return (None if reason else triton_kernel), reason


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
