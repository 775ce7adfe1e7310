"""Run the compiled CPU backend: both maxima fused with the product (sources in csrc/).

Tokens are float32 or bfloat16; float16 ones are widened to float32 first, which is exact.

The library is in the wheel, or is compiled on first use and cached per user, compiler and source text. It is plain C
and fits every version of PyTorch, whose OpenMP runtime it uses. It holds a kernel for each instruction set (AMX,
AVX-512 with and without products of bfloat16 pairs, AVX2 with FMA, and whatever the compiler's base target offers) and
takes the fastest that the CPU has, by a measurement that is kept in the cache: a product of bfloat16 pairs
is twice as fast as float32's on AMD's Zen 4, and half as fast on Intel's Sapphire Rapids. ``LATE_INTERACTION_ISA``
names another (``isas()`` lists those that run here). AMX multiplies float32 as the sum of two bfloat16, with 16 bits of
each token, so it takes float32 only after ``torch.set_float32_matmul_precision("high")``. Threads are PyTorch's
(``torch.set_num_threads``); the result is the same to the bit whatever their number.

``LATE_INTERACTION_CACHE`` moves the cache from ``$XDG_CACHE_HOME/late-interaction`` (``~/.cache/…``).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from late_interaction import native_build
from late_interaction.lengths import offsets_of
from late_interaction.packing import Pair, Residuals, Tokens, longest_of

ISA_VARIABLE = "LATE_INTERACTION_ISA"
KINDS = ("bf16", "fp32", "fp32_high")  # tokens of bfloat16, of float32, of float32 where 16 bits are enough
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SMOOTH_RANGE = 75.0  # exp() of more, summed over a hundred thousand tokens, is beyond float32
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
        patches = image_tokens.shape[1] if image_tokens.dim() == 3 else 1
        if max(patches, longest) > _LARGEST:
            return f"the native kernels take at most {_LARGEST} tokens per image or text"
    return _library()[1] or ""


@functools.cache
def isas() -> list[str]:
    """Return the instruction sets with a kernel that this CPU can run, the newest first."""
    library = _require_library()
    library.interaction_isas.restype = ctypes.c_char_p
    return library.interaction_isas().decode().split()


@functools.cache
def fastest_isa(kind: str) -> str:
    """Return the instruction set that is fastest on this CPU for one of KINDS.

    It is measured once for each model of CPU and each library. One with other results than the
    most portable one is left out, with a line on stderr.
    """
    library = hashlib.sha256(Path(_require_library()._name).read_bytes() + " ".join(isas()).encode()).hexdigest()[:12]
    file = native_build.cache_folder() / f"isa-{_cpu_model()}-{library}.json"
    try:
        chosen: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        chosen = {each: _measured(_exact_isas() if each == "fp32" else isas(), each == "bf16") for each in KINDS}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(chosen), encoding="utf-8")
            part.replace(file)
        except OSError:
            pass  # a cache that cannot be written to: the next process measures again
    return chosen[kind]


def _exact_isas() -> list[str]:
    return [isa for isa in isas() if isa != "amx"]


def _kind(tokens: Tensor) -> str:
    if tokens.dtype == torch.bfloat16:
        return "bf16"
    try:
        exact = isas() == _exact_isas() or torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # a precision was set for one of PyTorch's backends, which is none of ours
        exact = True
    return "fp32" if exact else "fp32_high"


def _cpu_model() -> str:
    """Return a short name of this model of CPU, the same on every machine that has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
        model = "\n".join(line for line in lines if line.startswith(("model", "cpu family", "flags", "stepping")))
    except OSError:
        model = platform.processor() or platform.machine()
    return hashlib.sha256(model.encode()).hexdigest()[:12]


def _measured(names: list[str], bf16: bool) -> str:
    """Return the fastest instruction set at a forward pass and both of a smooth maximum, among the ones that agree."""
    generator = torch.Generator().manual_seed(0)
    image, text = (
        torch.nn.functional.normalize(torch.randn(rows, 64, generator=generator), dim=-1) for rows in (8 * 49, 24 * 12)
    )
    dtype = torch.bfloat16 if bf16 else torch.float32
    tokens = Tokens(image.view(8, 49, 64).to(dtype), text.to(dtype), [12] * 24)
    problem = _problem(tokens)
    upstream = tuple(torch.randn(8, 24, generator=generator) for _ in range(2))

    def run(isa: str) -> tuple[float, list[Tensor]]:
        results = [torch.empty(8, 24) for _ in range(2)] + list(_gradients(tokens, (True, True)))
        started = time.perf_counter()
        _call("interaction_forward", problem, False, *results[:2], None, None, isa=isa)
        _call("interaction_smooth_backward", problem, False, 0.05, False, *upstream, *results[2:], isa=isa)
        return time.perf_counter() - started, results

    expected = run(names[-1])[1]
    agreeing = []
    for isa in names:
        errors = [float((a - b).norm() / b.norm()) for a, b in zip(run(isa)[1], expected, strict=True)]
        if max(errors[:2]) < 1e-4 and max(errors[2:]) < 0.02:  # the gradients' weights may be bfloat16; NaN disagrees
            agreeing.append(isa)
        else:
            print(f"late_interaction: the {isa} kernel is left out, it is off by {max(errors):.2g}", file=sys.stderr)
    seconds: dict[str, list[float]] = {isa: [] for isa in agreeing}
    for _ in range(5):  # in turns, and the best of them: another process may have the core
        for isa in agreeing:
            seconds[isa].append(run(isa)[0])
    # The widest unless another is clearly faster: the bits of a result must not hang on the noise of a measurement.
    return next(isa for isa in agreeing if min(seconds[isa]) <= 1.05 * min(map(min, seconds.values())))


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] and, with ``save_for_backward``, the two arg-max maps of the maximum.

    The maps: winning text token of each image token [b, t, n1] (flat where n1 differs), winning image token of each
    text token [b, T]; uint8, int16 above 256 tokens. A smooth maximum keeps nothing.
    """
    problem = _problem(tokens)
    b, texts = tokens.shape
    i2t, t2i = (torch.empty(b, texts) for _ in range(2))
    if tokens.temperature:
        shifted = _shifted(problem, tokens.temperature)
        _call("interaction_smooth_forward", problem, False, tokens.temperature, shifted, i2t, t2i)
        return (i2t, t2i), ()
    maps: Residuals = ()
    if save_for_backward:
        index = torch.int16 if _wide(tokens) else torch.uint8
        flat = torch.empty(len(problem.image) * texts, dtype=index)
        of_images = flat.view(b, texts, -1) if tokens.image_lengths is None else flat
        maps = of_images, torch.empty(b, len(problem.text), dtype=index)
    _call("interaction_forward", problem, _wide(tokens), i2t, t2i, *(maps or (None, None)))
    return (i2t, t2i), maps


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return float32 gradients of both inputs, from the gradients of s^I and s^T and the maps that ``forward`` saved.

    One that is not needed is an empty tensor.
    """
    problem, gradients = _problem(tokens), _gradients(tokens, needs)
    upstream = [g.detach().to(torch.float32).expand(tokens.shape).contiguous() for g in grads]
    if tokens.temperature:
        shifted = _shifted(problem, tokens.temperature)
        _call("interaction_smooth_backward", problem, False, tokens.temperature, shifted, *upstream, *gradients)
    else:
        _call("interaction_backward", problem, _wide(tokens), *upstream, *residuals, *gradients)
    return gradients


def _wide(tokens: Tokens) -> bool:
    """Return whether the maps are of 16 bits."""
    return longest_of(tokens.lengths, tokens.patches) > 256


def _shifted(problem: _Problem, temperature: float) -> bool:
    """Return whether exponentials may leave the range of float32: by |image| |text|, or since one is NaN."""
    longest = [
        float(torch.linalg.vector_norm(side, dim=-1, dtype=torch.float32).max())
        for side in (problem.image, problem.text)
    ]
    return not longest[0] * longest[1] <= _SMOOTH_RANGE * temperature


def _gradients(tokens: Tokens, needs: tuple[bool, bool]) -> Pair:
    grad_image, grad_text = (
        torch.empty((side if need else side[:0]).shape, dtype=torch.float32)
        for side, need in zip(tokens[:2], needs, strict=True)
    )
    return grad_image, grad_text


class _Problem(NamedTuple):
    """The tokens of both sides, packed and contiguous, and where each item begins."""

    image: Tensor  # [P, d]
    text: Tensor  # [T, d]
    image_offsets: Tensor  # [images + 1]
    text_offsets: Tensor  # [texts + 1]


def _problem(tokens: Tokens) -> _Problem:
    image, text = (side.detach().contiguous() for side in tokens[:2])
    if image.dtype == torch.float16:
        image, text = image.float(), text.float()
    offsets = (torch.tensor(offsets_of(lengths)) for lengths in (tokens.patches, tokens.lengths))
    return _Problem(image.flatten(0, -2), text, *offsets)


def _call(name: str, problem: _Problem, wide: bool, *others: Tensor | float | None, isa: str | None = None) -> None:
    """Call a kernel, on the fastest instruction set if none is given.

    ``others`` follow the problem in its signature: numbers, tensors, null for None and empty ones. ctypes releases the
    global interpreter lock meanwhile.
    """
    isa = isa or os.environ.get(ISA_VARIABLE) or fastest_isa(_kind(problem.image))
    items = len(problem.image_offsets) - 1, len(problem.text_offsets) - 1
    arguments = [
        ctypes.c_char_p(isa.encode()),
        *(_Pointer(t.data_ptr()) for t in problem),
        *(_Size(n) for n in (*items, problem.text.shape[1])),
        ctypes.c_int(problem.image.dtype == torch.bfloat16),
        ctypes.c_int(wide),
        ctypes.c_int(torch.get_num_threads()),
    ]
    code = getattr(_require_library(), name)(*arguments, *map(_argument, others))
    if code == 1:
        raise ValueError(f"{ISA_VARIABLE}={isa!r} is not an instruction set of this CPU; it has {', '.join(isas())}")
    if code == 2:
        raise MemoryError("the native kernels could not allocate their scratch memory")


def _argument(other: Tensor | float | None) -> ctypes.c_int | ctypes.c_float | ctypes.c_void_p:
    if isinstance(other, bool):
        return ctypes.c_int(other)
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
