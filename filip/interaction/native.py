"""The compiled CPU backend: both maxima fused with the product, float32 and bfloat16 (sources in csrc/).

The library is built with PyTorch's own machinery on first use and cached per user, PyTorch version, compiler
and source text; it is plain C underneath, so loading it again takes a millisecond. It holds a kernel for each
instruction set (AVX-512 with VNNI, AVX-512, AVX2 with FMA, and whatever the compiler's base target offers) and takes
the best one the CPU has; ``FILIP_NATIVE_ISA`` names another (``isas()`` lists those that run here). Threads are
PyTorch's (``torch.set_num_threads``), and the result does not depend on their number, to the bit.

``FILIP_NATIVE_CACHE`` moves the cache from ``$XDG_CACHE_HOME/filip`` (``~/.cache/filip``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from filip.interaction import native_build
from filip.interaction.packing import offsets_of

ISA_VARIABLE = "FILIP_NATIVE_ISA"
DIRECTIONS = ("i2t", "t2i")
_DTYPES = (torch.float32, torch.bfloat16)
_LARGEST = torch.iinfo(torch.int16).max  # indices of the arg-max maps
_Pointer, _Size = ctypes.c_void_p, ctypes.c_int64


def available() -> bool:
    """Whether the kernels can run here; compiles them if nobody has yet (some ten seconds, once)."""
    return _library()[0] is not None


def unavailable_reason() -> str | None:
    """Why not, as one line for a user; None when they are available."""
    return _library()[1]


def unavailable(image_tokens: Tensor, longest: int) -> str:
    """Why this problem cannot be given to the native kernels, or ""; ``longest`` is the longest text."""
    if image_tokens.device.type != "cpu":
        return f"the native kernels run on CPUs, not on {image_tokens.device}"
    if image_tokens.dtype not in _DTYPES:
        return f"the native kernels take float32 and bfloat16, not {image_tokens.dtype}"
    if max(image_tokens.shape[1], longest) > _LARGEST:
        return f"the native kernels take at most {_LARGEST} tokens per image or text"
    return unavailable_reason() or ""


def isas() -> list[str]:
    """The instruction sets with a kernel that this CPU can run, best first."""
    library = _require_library()
    library.filip_isas.restype = ctypes.c_char_p
    return library.filip_isas().decode().split()


def late_interaction(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """s^I and s^T [images, texts] in float32, differentiable once.

    ``image_tokens`` [b, n1, d] and packed ``text_tokens`` [T, d], both float32 or both bfloat16 on the CPU;
    ``text_lengths`` [t] integers >= 1 with sum T. Gradients have the dtype of the tokens; ties go to the
    lowest index. Raises RuntimeError where the kernels are unavailable, ValueError for anything else than the above.
    """
    i2t, t2i = _LateInteraction.apply(image_tokens, text_tokens, text_lengths.tolist(), DIRECTIONS)
    return i2t, t2i


def one_direction(image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, direction: str) -> Tensor:
    """Only s^I ("i2t") or s^T ("t2i"), at about three quarters of the price of both; else as late_interaction."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} is not one of {', '.join(DIRECTIONS)}")
    both = _LateInteraction.apply(image_tokens, text_tokens, text_lengths.tolist(), (direction,))
    return both[DIRECTIONS.index(direction)]


def forward(
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: Sequence[int],
    keep: bool = True,
    directions: Sequence[str] = DIRECTIONS,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """s^I, s^T [images, texts] and, with ``keep``, the two arg-max maps; no graph.

    A direction that is not among ``directions`` costs nothing and comes back empty, with its map. The maps: winning
    text token of each image token [b, t, n1], winning image token of each text token [b, T]; uint8, int16 above 256
    tokens.
    """
    image, text = image_tokens.detach().contiguous(), text_tokens.detach().contiguous()
    offsets = torch.tensor(offsets_of(lengths))
    _check(image, text, offsets)
    b, n1, _ = image.shape
    index = torch.int16 if _wide(n1, lengths) else torch.uint8
    shapes = {"i2t": (b, len(lengths), n1), "t2i": (b, len(text))}
    i2t, t2i = (torch.empty((b, len(lengths)) if d in directions else 0) for d in DIRECTIONS)
    maps = [torch.empty(shapes[d] if keep and d in directions else 0, dtype=index) for d in DIRECTIONS]
    _call("filip_forward", image, text, offsets, _wide(n1, lengths), i2t, t2i, *maps)
    kept = tuple(maps) if keep else ()
    return i2t, t2i, kept


def backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: Sequence[int],
    kept: tuple[Tensor, ...],
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs, in their dtype, from those of s^I and s^T and what ``forward`` kept.

    A side whose entry in ``needs`` is false comes back uninitialised. The gradient of a direction that ``forward``
    was not asked for is ignored.
    """
    image, text = image_tokens.detach().contiguous(), text_tokens.detach().contiguous()
    offsets = torch.tensor(offsets_of(lengths))
    _check(image, text, offsets)
    shape = (image.shape[0], len(lengths))
    grads = [
        grad.detach().to(torch.float32).expand(shape).contiguous() if winners.numel() else grad.new_empty(0)
        for grad, winners in zip((grad_i2t, grad_t2i), kept, strict=True)
    ]
    grad_image, grad_text = torch.empty_like(image), torch.empty_like(text)
    outputs = (grad_image if needs[0] else None, grad_text if needs[1] else None)
    _call("filip_backward", image, text, offsets, kept[0].dtype == torch.int16, *grads, *kept, *outputs)
    return grad_image, grad_text


class _LateInteraction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], directions: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        i2t, t2i, kept = forward(image_tokens, text_tokens, lengths, any(ctx.needs_input_grad), directions)
        ctx.save_for_backward(image_tokens, text_tokens, *kept)
        ctx.lengths = lengths
        return i2t, t2i

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        image_tokens, text_tokens, *kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        of_images, of_texts = backward(
            grads[0], grads[1], image_tokens, text_tokens, ctx.lengths, tuple(kept), needs
        )
        return (of_images if needs[0] else None), (of_texts if needs[1] else None), None, None


def _wide(n1: int, lengths: Sequence[int]) -> bool:
    return max(n1, max(lengths)) > 256


def _check(image: Tensor, text: Tensor, offsets: Tensor) -> None:
    if image.dim() != 3 or text.dim() != 2 or 0 in image.shape or len(offsets) < 2:
        raise ValueError(
            f"expected image tokens [b, n1, d], text tokens [T, d] and at least one text, "
            f"got {list(image.shape)}, {list(text.shape)} and {len(offsets) - 1} texts"
        )
    if image.dtype != text.dtype or image.shape[2] != text.shape[1]:
        raise ValueError(
            f"image and text tokens differ: {image.dtype} with {image.shape[2]} features "
            f"and {text.dtype} with {text.shape[1]}"
        )
    steps = offsets.diff()
    if int(steps.min()) < 1 or int(offsets[-1]) != len(text):
        raise ValueError(f"text lengths must be >= 1 with sum {len(text)}; they sum to {int(offsets[-1])}")
    reason = unavailable(image, int(steps.max()))
    if reason:
        raise (RuntimeError if unavailable_reason() else ValueError)(reason)


def _call(
    name: str, image: Tensor, text: Tensor, offsets: Tensor, wide: bool, *tensors: Tensor | None
) -> None:
    """``tensors`` follow the problem in the C signature, None and empty ones as null.

    ctypes releases the global interpreter lock meanwhile.
    """
    isa = os.environ.get(ISA_VARIABLE, "")
    problem = [
        ctypes.c_char_p(isa.encode()),
        *(_Pointer(t.data_ptr()) for t in (image, text, offsets)),
        *(_Size(n) for n in (*image.shape[:2], len(offsets) - 1, image.shape[2])),
        ctypes.c_int(image.dtype == torch.bfloat16),
        ctypes.c_int(wide),
    ]
    pointers = [_Pointer(t.data_ptr() if t is not None and t.numel() else None) for t in tensors]
    code = getattr(_require_library(), name)(*problem, *pointers)
    if code == 1:
        raise ValueError(
            f"{ISA_VARIABLE}={isa!r} is not an instruction set of this CPU; it has {', '.join(isas())}"
        )
    if code == 2:
        raise MemoryError("the native kernels could not allocate their scratch memory")


def _require_library() -> ctypes.CDLL:
    library, reason = _library()
    if library is None:
        raise RuntimeError(reason)
    return library


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return ctypes.CDLL(str(native_build.library_path())), None
    except (native_build.BuildError, OSError) as error:
        return None, f"the native CPU kernels are unavailable: {error}"
