"""Fetch images from the web."""

import importlib
import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

# img2dataset imports albumentations, which asks the network for a newer version of itself whenever it is imported. Set
# here, because the workers of a cluster import this package first and have no other environment of ours.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")


class _Parts(ModuleType):
    """img2dataset, of which we need the resizer: its own start imports PyTorch and wandb, 1.7 seconds of a core."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module("img2dataset.main"), name)


def _put_off_main() -> None:
    """Make img2dataset import its modules one by one, from now on; its functions are still found."""
    spec = find_spec("img2dataset")
    if spec is None or "img2dataset" in sys.modules:
        return
    parts = _Parts("img2dataset")
    parts.__path__ = list(spec.submodule_search_locations or [])
    parts.__spec__, parts.__file__ = spec, spec.origin
    sys.modules["img2dataset"] = parts


_put_off_main()
