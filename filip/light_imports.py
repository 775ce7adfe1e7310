"""Import timm and torchvision in a third of their time.

Both import torch's compiler, which brings sympy and Triton, to decorate functions that we never call, and timm imports
wandb wherever it is installed (img2dataset brings it). Every command, rank and test that starts would pay for that.

    with light_imports():
        import timm
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_COMPILER_UTILS = "torch._dynamo.utils"


class _Deferred(ModuleType):
    """A place holder for a module: it knows a few functions, and is replaced by the module if asked for another."""

    def __init__(self, name: str, **functions: Callable[..., Any]) -> None:
        super().__init__(name)
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_place_holders()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_place_holders() -> None:
    for name in (_COMPILER, _COMPILER_UTILS):
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


def _disable(function: Any = None, recursive: bool = True, **reason: Any) -> Any:
    """``torch.compiler.disable``, as torch's own modules use it: the compiler is imported at the first call."""
    return torch._disable_dynamo(function, recursive)


def _is_compile_supported(device: str) -> Any:
    return importlib.import_module(_COMPILER_UTILS).is_compile_supported(device)


@contextmanager
def light_imports() -> Iterator[None]:
    """Inside the block, an import of torch's compiler is put off until it is used, and wandb is not found.

    What was imported before stays as it is, and what is used after the block is the real thing.
    """
    hides_wandb = "wandb" not in sys.modules
    if hides_wandb:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _Deferred(_COMPILER, disable=_disable)
        sys.modules[_COMPILER_UTILS] = _Deferred(_COMPILER_UTILS, is_compile_supported=_is_compile_supported)
    try:
        yield
    finally:
        _remove_place_holders()
        if hides_wandb and sys.modules.get("wandb", ...) is None:
            del sys.modules["wandb"]
