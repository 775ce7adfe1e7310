"""Run the compiled CPU backend: both maxima fused with the product (sources in csrc/).

Tokens are float32 or bfloat16; float16 ones are widened to float32 first, which is exact.

The library is in the wheel, or is compiled on first use and cached per user, compiler and source text. It is plain C
and fits every version of PyTorch, whose OpenMP runtime it uses. It holds a kernel for each instruction set: AVX-512
with and without products of bfloat16 pairs (which are twice as fast as float32's on AMD's Zen 4, and half as fast on
Intel's Sapphire Rapids), AVX2 with FMA, and whatever the compiler's base target offers. On CPUs with AMX, PyTorch's
``brgemm`` multiplies bfloat16 tokens for them ("amx"). Which of them runs depends on the CPU and PyTorch alone, so that
a run has the same bits each time; ``LATE_INTERACTION_ISA`` names another (``isas()`` lists those that run here).
Threads are PyTorch's (``torch.set_num_threads``); the result is the same to the bit whatever their number.

``LATE_INTERACTION_CACHE`` moves the cache from ``$XDG_CACHE_HOME/late-interaction`` (``~/.cache/…``).
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import native_build
from late_interaction.lengths import offsets_of
from late_interaction.packing import Pair, Residuals, Tokens, longest_of

if TYPE_CHECKING:
    from late_interaction.pairs import Chosen

ISA_VARIABLE = "LATE_INTERACTION_ISA"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW_ROWS = 32  # of a query: two vectors of AVX-512
_SMOOTH_RANGE = 75.0  # exp() of more, summed over a hundred thousand tokens, is beyond float32
_LARGEST = torch.iinfo(torch.int16).max  # indices of the arg-max maps
_Size = ctypes.c_int64
# PyTorch's product of bfloat16, and what a thread calls after its last. Another signature would have another name.
_BRGEMM = ("_ZN2at6native7cpublas6brgemmEllllllbPKN3c108BFloat16ES5_Pfb", "_ZN2at6native7cpublas14brgemm_releaseEb")


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
    """Return the instruction sets with a kernel that this CPU can run, the fastest first."""
    library = _require_library()
    library.interaction_isas.restype = ctypes.c_char_p
    names: list[str] = library.interaction_isas().decode().split()
    return ["amx", *names] if "avx512_bf16" in names and _torch_multiplies(library) else names


def _torch_multiplies(library: ctypes.CDLL) -> bool:
    """Give ``library`` PyTorch's product by AMX; return whether this CPU and this build of PyTorch have it."""
    if not getattr(torch.cpu, "_is_amx_tile_supported", bool)():
        return False
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        functions = [getattr(torch_cpu, name) for name in _BRGEMM]
    except (OSError, AttributeError):
        return False
    return not library.interaction_use(*functions)


def units() -> int:
    """Return the most units of work that threads could take at once in the last pass; more threads were idle."""
    return int(_require_library().interaction_units())


def isa_for(tokens: Tensor) -> str:
    """Return the instruction set that takes these tokens: LATE_INTERACTION_ISA, or the first of :func:`isas`.

    AMX takes bfloat16 alone.
    """
    named, names, pairs = os.environ.get(ISA_VARIABLE), isas(), tokens.dtype == torch.bfloat16
    if named and (named != "amx" or pairs):
        return named
    return next(isa for isa in names if isa != "amx" or pairs)


def forward(tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Return s^I, s^T [images, texts] and, with ``save_for_backward``, the two arg-max maps of the maximum.

    The maps: winning text token of each image token [b, t, n1] (flat where n1 differs), winning image token of each
    text token [b, T]; uint8, int16 above 256 tokens. A smooth maximum keeps nothing.
    """
    # The side in the vector lanes is copied, and the other one streamed: a query goes there, not a collection.
    few = len(tokens.text) <= FEW_ROWS < tokens.image[..., 0].numel()
    turned = few and not (save_for_backward or tokens.temperature)
    if turned:
        tokens = Tokens(tokens.text, tokens.image.flatten(0, -2), tokens.patches, tokens.lengths)
    b, texts = tokens.shape
    problem = _problem(tokens)
    i2t, t2i = (torch.empty(b, texts, dtype=torch.float32) for _ in "it")
    if tokens.temperature:
        _run(problem, False, scores=(i2t, t2i), temperature=tokens.temperature)
        return (i2t, t2i), ()
    maps: Residuals = ()
    if save_for_backward:
        index = torch.int16 if _wide(tokens) else torch.uint8
        flat = torch.empty(len(problem.image) * texts, dtype=index)
        of_images = flat.view(b, texts, -1) if tokens.image_lengths is None else flat
        maps = of_images, torch.empty(b, len(problem.text), dtype=index)
    _run(problem, _wide(tokens), scores=(i2t, t2i), maps=maps or _NONE)
    return (t2i.T.contiguous(), i2t.T.contiguous()) if turned else (i2t, t2i), maps


def backward(tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)) -> Pair:
    """Return float32 gradients of both inputs, from the gradients of s^I and s^T and the maps that ``forward`` saved.

    One that is not needed is an empty tensor.
    """
    problem = _problem(tokens)
    of_image, of_text = (
        torch.empty((side if need else side[:0]).shape, dtype=torch.float32)
        for side, need in zip(tokens[:2], needs, strict=True)
    )
    upstream = [g.detach().to(torch.float32).expand(tokens.shape).contiguous() for g in grads]
    how: Any = {"gradients": (of_image, of_text), "temperature": tokens.temperature}
    _run(problem, _wide(tokens), residuals or _NONE, grads=upstream, **how)
    return of_image, of_text


def pairs_forward(image: Tensor, text: Tensor, chosen: Chosen) -> tuple[Pair, Residuals]:
    """Return both similarities of each pair and, with ``chosen.save``, their winners one after the other."""
    i2t, t2i = (torch.empty(len(chosen.images), dtype=torch.float32) for _ in "it")
    index = torch.int16 if chosen.longest > 256 else torch.uint8
    maps = tuple(torch.empty(int(n.sum()) if chosen.save else 0, dtype=index) for n in (chosen.n1, chosen.n2))
    _run_pairs(image, text, chosen, maps, scores=(i2t, t2i))
    return (i2t, t2i), maps


def pairs_backward(
    image: Tensor, text: Tensor, chosen: Chosen, grads: Pair, winners: Residuals, gradients: Pair
) -> None:
    """Fill the float32 ``gradients`` of both sides' rows, but for those that are empty."""
    upstream = [grad.to(torch.float32).contiguous() for grad in grads]
    _run_pairs(image, text, chosen, winners, grads=upstream, gradients=gradients)


def text_scores(words: Tensor, tokens: Tensor, scales: Tensor | None, lengths: Tensor) -> Tensor | None:
    """Return what :func:`late_interaction.retrieval.text_scores` does; None where no kernel takes these tokens.

    tokens: [T, d] with any step from row to row. Words are rounded to the type of the tokens.
    """
    dim, whole, kind = words.shape[1], tokens.dtype == torch.int8, (torch.int8, torch.bfloat16)
    of_bytes, isa = 4 // tokens.element_size(), os.environ.get(ISA_VARIABLE) or "amx"
    if tokens.dtype not in kind or dim % of_bytes or tokens.stride(1) != 1:
        return None
    if isa not in ("amx", "avx512_bf16") or _library()[0] is None:
        return None
    weights = words.new_full((len(words),), 1 / len(words))
    lanes = 16
    if whole:  # the kernel wants a word of 128 alone in the last lane
        scale = words.abs().amax(1).clamp(min=1e-12) / 127
        words, weights, lanes = (words / scale[:, None]).round() + 128, weights * scale, 15
    vectors = -(-len(words) // lanes)
    panel = words.new_full((vectors * lanes, dim), 128.0 if whole else 0.0)
    panel[: len(words)] = words
    panel = F.pad(panel.view(vectors, lanes, dim), (0, 0, 0, 16 - lanes), value=128.0)
    panel = panel.to(torch.uint8 if whole else torch.bfloat16).view(vectors, 16, -1, of_bytes).permute(2, 0, 1, 3)
    weights = F.pad(weights, (0, vectors * lanes - len(weights))).view(vectors, lanes)
    weights, panel = F.pad(weights, (0, 16 - lanes)).contiguous(), panel.contiguous()
    scores, offsets = torch.empty(len(lengths)), F.pad(lengths.long().cumsum(0), (1, 0))
    code = _require_library().interaction_search(
        *map(_pointer, (panel, weights)),
        *(_Size(n) for n in (vectors, dim // of_bytes)),
        _pointer(tokens),
        _Size(tokens.stride(0) * tokens.element_size()),
        _pointer(scales),
        _Size(0 if scales is None else scales.stride(0)),
        _pointer(offsets),
        _Size(len(lengths)),
        ctypes.c_int(whole),
        _pointer(scores),
        ctypes.c_int(torch.get_num_threads()),
    )
    return None if code else scores


def _run_pairs(image: Tensor, text: Tensor, chosen: Chosen, maps: Residuals, **others: Any) -> None:
    problem = _widened(image, text, chosen.image_rows, chosen.text_rows)
    _run(problem, chosen.longest > 256, maps, pairs=(chosen.images, chosen.texts), **others)


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


class _Problem(NamedTuple):
    """The tokens of both sides, packed and contiguous, and where each item begins."""

    image: Tensor  # [P, d]
    text: Tensor  # [T, d]
    image_offsets: Tensor  # [images + 1]; for given pairs first and last rows, [images, 2]
    text_offsets: Tensor  # [texts + 1] or [texts, 2]


def _problem(tokens: Tokens) -> _Problem:
    offsets = (torch.tensor(offsets_of(lengths)) for lengths in (tokens.patches, tokens.lengths))
    return _widened(tokens.image.flatten(0, -2), tokens.text, *offsets)


def _widened(image: Tensor, text: Tensor, *rows: Tensor) -> _Problem:
    image, text = (side.detach().contiguous() for side in (image, text))
    return _Problem(*((image.float(), text.float()) if image.dtype == torch.float16 else (image, text)), *rows)


_NONE = (None, None)
_Two = Sequence[Tensor | None]


def _run(
    problem: _Problem,
    wide: bool,
    maps: _Two = _NONE,
    *,
    scores: _Two = _NONE,
    grads: _Two = _NONE,
    gradients: _Two = _NONE,
    temperature: float = 0.0,
    pairs: _Two = _NONE,
) -> None:
    """Run a pass, a forward if there are ``scores`` to fill. ctypes releases the global interpreter lock meanwhile."""
    isa = isa_for(problem.image)
    items = (len(offsets) - (offsets.dim() == 1) for offsets in problem[2:])
    code = _require_library().interaction_run(
        ctypes.c_char_p(isa.encode()),
        *map(_pointer, problem),
        *(_Size(n) for n in (*items, problem.text.shape[1])),
        ctypes.c_int(problem.image.dtype == torch.bfloat16),
        ctypes.c_int(wide),
        ctypes.c_int(torch.get_num_threads()),
        ctypes.c_float(temperature),
        ctypes.c_int(temperature > 0 and _shifted(problem, temperature)),
        *(_pointer(t) for two in (scores, grads, maps, gradients) for t in two),
        _Size(0 if pairs[0] is None else len(pairs[0])),
        *map(_pointer, pairs),
        *(_Size(len(tokens)) for tokens in problem[:2]),
    )
    if code == 1:
        raise ValueError(f"{ISA_VARIABLE}={isa!r} is not an instruction set of this CPU; it has {', '.join(isas())}")
    if code == 2:
        raise MemoryError("the native kernels could not allocate their scratch memory")


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return where the numbers of ``tensor`` are; null for None, and for one without any."""
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None and tensor.numel() else None)


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
