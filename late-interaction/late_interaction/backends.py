"""Register the backends that compute the similarity, and choose among them for given tokens.

A backend is a module with two functions that know nothing of autograd:

    forward(tokens, save_for_backward) -> ((s^I, s^T), residuals)
    backward(tokens, (grad s^I, grad s^T), residuals, needs) -> (grad image, grad text)

``tokens`` are :class:`late_interaction.packing.Tokens`. ``residuals`` are tensors that only the backend reads,
undefined unless ``save_for_backward`` is true; ``backward`` may find them as flat bytes. s^I and s^T are [b, texts];
everything but the tokens is in the accumulation dtype (float32, or float64 for float64 tokens). ``needs`` says which
gradients are wanted; the other is empty. Where ``tokens.temperature`` is above 0 both compute the smooth maximum of it.

A backend that does not run everywhere has a third function, ``unavailable_reason(image_tokens, longest)``: it returns
a sentence, or "" where it can run. A new backend is an entry of :data:`BACKENDS`.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from late_interaction.packing import Pair, Residuals, Tokens

ENVIRONMENT_VARIABLE = "LATE_INTERACTION_BACKEND"
FEW_PRODUCTS = 30_000_000  # those of a query and 1,000 small pictures: milliseconds of the tiled backend


class Backend(Protocol):
    """The module that the operators expect (see above)."""

    def forward(self, tokens: Tokens, save_for_backward: bool = True, /) -> tuple[Pair, Residuals]: ...

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True), /
    ) -> Pair: ...


@dataclass(frozen=True)
class SmoothMaximum:
    """The smooth maximum ``t log(mean exp(s / t))`` of a temperature t > 0 in place of the maximum.

        similarity = late_interaction(image_tokens, text_tokens, text_lengths, maximum=SmoothMaximum(0.05))

    It is between the mean (t to infinity) and the maximum (t to 0), never above the maximum; every token has a part
    in the gradient. Native kernels compute it on CPUs, for all dtypes but float64, and Triton's on GPUs where
    exponentials stay in the range of float32; elsewhere PyTorch computes it in blocks. Only Triton's save something for
    the backward. The smooth Chamfer similarity (arXiv 2211.16761) has a sum for the mean.
    """

    temperature: float
    unit: bool = False  # the tokens are known to have unit length: Triton need not wait for a GPU to compute norms

    def __post_init__(self) -> None:
        if isinstance(self.temperature, Tensor):
            raise TypeError("temperature is a number: the kernels compute no gradient for it")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, got {self.temperature}")


def softness(maximum: SmoothMaximum | None) -> tuple[float, bool]:
    """Return the temperature, 0 for the maximum itself, and whether tokens are known to be unit."""
    return (0.0, False) if maximum is None else (float(maximum.temperature), maximum.unit)


@dataclass(frozen=True)
class BackendEntry:
    """A backend as :data:`BACKENDS` lists it.

    module   name of the module, which is imported on first use
    auto_on  the kind of device on which "auto" prefers it to the tiled backend; None: nowhere
    declines why "auto" does not take it for these tokens on that device and so many products; None: it does. "" prints
             no notice
    """

    module: str
    auto_on: str | None = None
    declines: Callable[[Tensor, int | None], str | None] = lambda *_: None


def _native_declines(image_tokens: Tensor, products: int | None) -> str | None:
    few = products is not None and products < FEW_PRODUCTS
    return "" if few or image_tokens.dtype == torch.float64 else None  # as documented, so not worth a notice


def triton_declines(image_tokens: Tensor, products: int | None = None) -> str | None:
    """Return why "auto" does not take Triton on the CUDA device of these tokens; None: it does."""
    if torch.version.hip:  # which reports 9.0 and more
        name = torch.cuda.get_device_properties(image_tokens.device).gcnArchName.partition(":")[0]
        if name == "gfx942" and image_tokens.dtype != torch.float32:
            return None
        return "of AMD's GPUs the Triton kernels compile for MI300 (gfx942), and there for 16 bits alone"
    major, minor = torch.cuda.get_device_capability(image_tokens.device)
    if major >= 8:
        return None
    return f"Triton has no tensor-core path for compute capability {major}.{minor} (8.0 is the first)"


BACKENDS: dict[str, BackendEntry] = {
    "reference": BackendEntry("late_interaction.reference"),
    "tiled": BackendEntry("late_interaction.tiled"),
    "native": BackendEntry("late_interaction.native", "cpu", _native_declines),
    "triton": BackendEntry("late_interaction.triton_backend", "cuda", triton_declines),
}


def backend_names() -> tuple[str, ...]:
    """Return the names that ``backend=`` takes."""
    return ("auto", *BACKENDS)


def choose_backend(
    image_tokens: Tensor, longest: int, backend: str | Backend = "auto", products: int | None = None
) -> Backend:
    """Return the backend for ``image_tokens`` [b, n1, d] against texts of at most ``longest`` tokens.

    Only the dtype, the device and n1 matter, so b may be 0. products: image token x text token x d of a scoring that
    needs no gradient; None for a training, which has the same backend in all of its steps.

    "auto" takes the native kernel on CPUs and Triton on GPUs where they run, otherwise the tiled backend, which it also
    takes for few products. A notice, printed once, says why a faster one is not used.
    """
    if not isinstance(backend, str):
        return backend
    name, source = backend, "backend="
    if backend == "auto" and os.environ.get(ENVIRONMENT_VARIABLE):
        name, source = os.environ[ENVIRONMENT_VARIABLE], f"the environment variable {ENVIRONMENT_VARIABLE}="
    if name == "auto":
        return _automatic(image_tokens, longest, products)
    if name not in BACKENDS:
        raise ValueError(f"{source}{name!r} is not a backend; choose one of {', '.join(backend_names())}")
    module, reason = _load(name, image_tokens, longest)
    if module is None:
        raise ValueError(f"{source}{name!r} cannot run here: {reason}; use 'tiled' or 'auto'")
    return module


def run_forward(module: Backend, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
    """Run ``module.forward`` with autocast off: it would round the similarities to 16 bits."""
    with torch.autocast(tokens.image.device.type, enabled=False):
        return module.forward(tokens, save_for_backward)


def run_backward(module: Backend, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool]) -> Pair:
    """Run ``module.backward`` with autocast off, for callers who differentiate inside its context."""
    with torch.autocast(tokens.image.device.type, enabled=False):
        return module.backward(tokens, grads, residuals, needs)


def _automatic(image_tokens: Tensor, longest: int, products: int | None) -> Backend:
    for name, entry in BACKENDS.items():
        if entry.auto_on == image_tokens.device.type:
            module, reason = None, entry.declines(image_tokens, products)
            if reason is None:
                module, reason = _load(name, image_tokens, longest)
            if module is not None:
                if name == "triton":
                    _notice_once("no GPU has run the Triton kernels yet; backend='tiled' is PyTorch alone")
                return module
            if reason:
                _notice_once(f"{reason}; using the tiled PyTorch backend, which is exact but slower")
    from late_interaction import tiled

    return tiled


def _load(name: str, image_tokens: Tensor, longest: int) -> tuple[Backend | None, str]:
    """Return the backend of that name, or None and why it cannot run. The native one compiles on its first call."""
    try:
        module: Any = importlib.import_module(BACKENDS[name].module)
    except ImportError as error:
        return None, f"the {name} backend cannot be imported ({error})"
    unavailable = getattr(module, "unavailable_reason", None)
    reason = unavailable(image_tokens, longest) if unavailable else ""
    return (None if reason else module), reason


_notices: set[str] = set()


def _notice_once(message: str) -> None:
    if message not in _notices and os.environ.get("RANK", "0") == "0":  # one line per job, not one per rank
        _notices.add(message)
        print(f"late_interaction: {message}", file=sys.stderr, flush=True)
