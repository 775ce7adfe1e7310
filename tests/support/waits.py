"""Counts the places where a GPU would be waited for, on a machine without one."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Calls that bring a number to Python or make a result whose size depends on numbers.
_WAITS = {
    Tensor.tolist, Tensor.item, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.__bool__, Tensor.__int__,
    Tensor.__float__, Tensor.__index__, torch.nonzero, torch.allclose, torch.unique, torch.masked_select,
}  # fmt: skip


GPU = torch.device("cpu", 0)  # the device of tensors that pretend to be on a GPU
_FACTORIES = {torch.tensor, torch.arange, torch.zeros, torch.ones, torch.empty, torch.full}


class DeviceWaits(TorchFunctionMode):
    """A mode in which all tensors count as on a GPU, but those passed to ``on_host`` and what is made from them or on
    a CPU.

    ``waits`` holds the name of each function that would wait. (torch.equal is left out: late_interaction.loss calls it
    on CPUs only.) PyTorch switches such modes off in the backward of a node; ``inside`` brings it back there.
    """

    def __init__(self, *on_host: Tensor) -> None:
        super().__init__()
        self.waits: list[str] = []
        for tensor in on_host:
            _mark(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((args, kwargs)))
        on_gpu = any(not _is_marked(tensor) for tensor in tensors)
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if on_gpu else torch.device("cpu")
        target = next((part for part in _flat((args, kwargs)) if isinstance(part, torch.device)), None)
        if on_gpu and (self._waits(func, args, kwargs) or (func is Tensor.to and target == torch.device("cpu"))):
            self.waits.append(getattr(func, "__name__", str(func)))
        result = func(*args, **kwargs)
        made_here = func in _FACTORIES if not tensors else not on_gpu
        if func is Tensor.cpu or target == torch.device("cpu") or (target is None and made_here):
            for tensor in _tensors(result):
                _mark(tensor)
        return result

    def inside(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, watched wherever it is called."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return watched

    @staticmethod
    def _waits(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        if func in _WAITS or (func is torch.where and len(args) == 1):
            return True
        if func in (torch.repeat_interleave, Tensor.repeat_interleave):
            return kwargs.get("output_size") is None and isinstance(args[1], Tensor)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            masks = (mask for mask in _tensors(args[1]) if mask.dtype == torch.bool)
            return any(not _is_marked(mask) for mask in masks)
        return False


def _mark(tensor: Tensor) -> None:
    tensor._of_host = True  # type: ignore[attr-defined]


def _is_marked(tensor: Tensor) -> bool:
    return getattr(tensor, "_of_host", False)


def _flat(value: Any) -> Iterable[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value


def _tensors(value: Any) -> Iterable[Tensor]:
    return (part for part in _flat(value) if isinstance(part, Tensor))
