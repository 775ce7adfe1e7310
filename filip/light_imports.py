"""Import timm, torchvision and DeepSpeed's ZeRO in a third of their time.

All import torch's compiler, which brings sympy and Triton, to decorate functions that we never call, and timm imports
wandb wherever it is installed (img2dataset brings it). Every command, rank and test that starts would pay for that.

    with light_imports():
        import timm
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"
_COMPILER_UTILS = "torch._dynamo.utils"
_compile_now = torch.compile


class _Deferred(ModuleType):
    """A placeholder for a module: it knows a few functions, and is replaced by the module if asked for another.

    asked: names with underscores that load the module as well; Python looks up some of them at every import.
    """

    def __init__(self, name: str, asked: tuple[str, ...] = (), **functions: Callable[..., Any]) -> None:
        super().__init__(name)
        self.__dict__.update(functions, _asked=asked)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in self.__dict__["_asked"]:
            raise AttributeError(name)
        _remove_place_holders()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_place_holders() -> None:
    for name in (_COMPILER, _COMPILER_UTILS):
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]


def _disable(function: Any = None, recursive: bool = True, **reason: Any) -> Any:
    """Stand in for ``torch.compiler.disable``, as torch's modules do: the compiler is imported at the first call."""
    return torch._disable_dynamo(function, recursive)


def _compile(function: Any = None, **options: Any) -> Any:
    """Stand in for ``torch.compile`` as a decorator: the function is compiled when it is first called."""
    if function is None:
        return partial(_compile, **options)
    compiled: list[Callable[..., Any]] = []

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        if isinstance(sys.modules.get(_COMPILER), _Deferred):  # put off
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(_compile_now(function, **options))
        return compiled[0](*args, **kwargs)

    return called


def _is_compile_supported(device: str) -> Any:
    return importlib.import_module(_COMPILER_UTILS).is_compile_supported(device)


def put_off_compiler() -> None:
    """Put off the import of torch's compiler, from the first optimiser to the first model that is compiled.

    torch's optimisers import it to keep their functions from being compiled, which takes five seconds on
    every rank (a core of a Zen 4).
    Those that have run before the first compilation are not kept from it later. Functions that a package compiles
    while it is imported with :func:`light_imports` run as they are.
    """
    if _COMPILER not in sys.modules:
        sys.modules[_COMPILER] = _Deferred(
            _COMPILER,
            ("__path__",),  # looked up by the import of a module below it
            disable=_left_as_it_is,
            graph_break=lambda: None,
        )


def _left_as_it_is(function: Any, recursive: bool = True, **reason: Any) -> Any:
    return function


@contextmanager
def light_imports() -> Iterator[None]:
    """Put off any import of torch's compiler inside the block until it is used, and hide wandb.

    Modules imported before stay as they are, and after the block the real ones are used. Functions that the block
    compiles are compiled when they are first called, after the block.
    """
    torch.compile = _compile  # type: ignore[assignment]
    hides_wandb = "wandb" not in sys.modules
    if hides_wandb:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    here = [
        _Deferred(_COMPILER, disable=_disable),
        _Deferred(_COMPILER_UTILS, is_compile_supported=_is_compile_supported),
    ]
    here = [module for module in here if module.__name__ not in sys.modules]
    sys.modules.update({module.__name__: module for module in here})
    try:
        yield
    finally:
        torch.compile = _compile_now
        for module in here:
            if sys.modules.get(module.__name__) is module:
                del sys.modules[module.__name__]
        if hides_wandb and sys.modules.get("wandb", ...) is None:
            del sys.modules["wandb"]
