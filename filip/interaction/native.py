"""Run the compiled CPU backend: both maxima fused with the product (sources in csrc/).

Tokens are float32 or bfloat16; float16 ones are widened to float32 first, which is exact.

The library is built with PyTorch's extension builder on first use and cached per user, PyTorch version, compiler and
source text; it is plain C underneath, so loading it again takes a millisecond. It holds a kernel for each instruction
set (AVX-512 with and without products of bfloat16 pairs, AVX2 with FMA, and whatever the compiler's base target offers)
and takes the best one the CPU has; ``FILIP_NATIVE_ISA`` names another (``isas()`` lists those that run here). Threads
are PyTorch's (``torch.set_num_threads``); the result is the same to the bit whatever their number.

``FILIP_NATIVE_CACHE`` moves the cache from ``$XDG_CACHE_HOME/filip`` (``~/.cache/filip``).
"""

from __future__ import annotations

import ctypes
import functools
import os

import torch
from torch import Tensor

from filip.interaction import native_build
from filip.interaction.packing import Pair, Residuals, Tokens, offsets_of

ISA_VARIABLE = "FILIP_NATIVE_ISA"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SMOOTH_RANGE = 75.0  # exp() of more, summed over a hundred thousand tokens, is beyond float32
_LARGEST = torch.iinfo(torch.int16).max  # indices of the arg-max maps
_Pointer, _Size = ctypes.c_void_p, ctypes.c_int64


def unavailable_reason(image_tokens: Tensor | None = None, longest: int = 1) -> str:
    """Return why the kernels cannot run here, or cannot take these tokens and a text of ``longest``; else "".

    Compiles them if necessary (about ten seconds, once).
    """
    if image_tokens is not None:
        if image_tokens.device.type != "cpu":
            return f"the native kernels run on CPUs, not on {image_tokens.device}"
        if image_tokens.dtype not in _DTYPES:
            return f"the native kernels take float32, bfloat16 and float16, not {image_tokens.dtype}"
        if max(image_tokens.shape[1], longest) > _LARGEST:
            return f"the native kernels take at most {_LARGEST} tokens per image or text"
    return _library()[1] or ""


def isas() -> list[str]:
    """Return the instruction sets with a kernel that this CPU can run, best first."""
    library = _require_library()
    library.filip_isas.restype = ctypes.c_char_p
    return library.filip_isas().decode().split()


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] and, with ``save_for_backward``, the two arg-max maps.

    The maps: winning text token of each image token [b, t, n1], winning image token of each text token [b, T];
    uint8, int16 above 256 tokens. Raises RuntimeError if the kernels are unavailable, ValueError for tokens that
    they do not take.
    """
    image, text, offsets = _checked(tokens)
    b, n1, _ = image.shape
    texts, wide = len(tokens.lengths), max(n1, max(tokens.lengths)) > 256
    i2t, t2i = (torch.empty(b, texts) for _ in range(2))
    maps: Residuals = ()
    if save_for_backward:
        index = torch.int16 if wide else torch.uint8
        maps = torch.empty(b, texts, n1, dtype=index), torch.empty(b, len(text), dtype=index)
    _call("filip_forward", image, text, offsets, wide, i2t, t2i, *(maps or (None, None)))
    return (i2t, t2i), maps


def backward(
    tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
) -> Pair:
    """Return float32 gradients of both inputs, from those of s^I and s^T and the maps that ``forward`` saved.

    One that is not needed is an empty tensor.
    """
    image, text, offsets = _checked(tokens)
    wide = residuals[0].dtype == torch.int16
    upstream, found = _upstream(tokens, grads), _gradients(image, text, needs)
    _call("filip_backward", image, text, offsets, wide, *upstream, *residuals, *found)
    return found


def smooth_forward(tokens: Tokens, temperature: float) -> Pair:
    """Return s^I, s^T [images, texts] with the smooth maximum; nothing is saved for the backward.

    The caller ensures that |image| |text| / temperature is at most :data:`SMOOTH_RANGE`.
    Raises as ``forward`` does.
    """
    image, text, offsets = _checked(tokens)
    i2t, t2i = (torch.empty(len(image), len(tokens.lengths)) for _ in range(2))
    _call("filip_smooth_forward", image, text, offsets, False, temperature, i2t, t2i)
    return i2t, t2i


def smooth_backward(
    tokens: Tokens, temperature: float, grads: Pair, needs: tuple[bool, bool] = (True, True)
) -> Pair:
    """Return float32 gradients of both inputs; one that is not needed is an empty tensor."""
    image, text, offsets = _checked(tokens)
    upstream = _upstream(tokens, grads)
    found = _gradients(image, text, needs)
    _call("filip_smooth_backward", image, text, offsets, False, temperature, *upstream, *found)
    return found


def _upstream(tokens: Tokens, grads: Pair) -> list[Tensor]:
    shape = len(tokens.image), len(tokens.lengths)
    return [g.detach().to(torch.float32).expand(shape).contiguous() for g in grads]


def _gradients(image: Tensor, text: Tensor, needs: tuple[bool, bool]) -> Pair:
    grad_image, grad_text = (
        torch.empty_like(side if need else side[:0], dtype=torch.float32)
        for side, need in zip((image, text), needs, strict=True)
    )
    return grad_image, grad_text


def _checked(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
    """Return contiguous image and text tokens, and the offsets of the texts; raise as ``forward`` does."""
    image, text = tokens.image.detach().contiguous(), tokens.text.detach().contiguous()
    offsets = torch.tensor(offsets_of(tokens.lengths))
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
    if reason := unavailable_reason(image, int(steps.max())):
        raise (RuntimeError if unavailable_reason() else ValueError)(reason)
    if image.dtype == torch.float16:
        image, text = image.float(), text.float()
    return image, text, offsets


def _call(
    name: str, image: Tensor, text: Tensor, offsets: Tensor, wide: bool, *others: Tensor | float | None
) -> None:
    """Call a kernel. ``others`` follow the problem in its signature: floats, tensors, null for None and empty ones.

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
    code = getattr(_require_library(), name)(*problem, *map(_argument, others))
    if code == 1:
        raise ValueError(
            f"{ISA_VARIABLE}={isa!r} is not an instruction set of this CPU; it has {', '.join(isas())}"
        )
    if code == 2:
        raise MemoryError("the native kernels could not allocate their scratch memory")


def _argument(other: Tensor | float | None) -> ctypes.c_float | ctypes.c_void_p:
    if isinstance(other, float):
        return ctypes.c_float(other)
    return _Pointer(other.data_ptr() if other is not None and other.numel() else None)


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
