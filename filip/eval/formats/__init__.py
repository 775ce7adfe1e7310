"""Read test sets from disk: one module per format, with the name that a card's ``layouts`` give it.

A module has ``open_set(card, root)``, which returns an :class:`filip.eval.datasets.EvalSet` or raises UserError.
A new format is a new file here.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from filip.common.errors import UserError
from filip.eval.benchmark import HAVE_CAPTIONS

if TYPE_CHECKING:
    from filip.eval.benchmark import BenchmarkCard
    from filip.eval.datasets import EvalSet

FORMATS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    """Return the data set of a card below ``root``. Raises UserError if it is not there or has the wrong kind."""
    data: EvalSet = importlib.import_module(f"{__name__}.{card.loader}").open_set(card, root)
    if (card.kind in HAVE_CAPTIONS) != (data.classes is None):
        raise UserError(
            f"card {card.name} is for {card.kind}, but {Path(root) / card.path} holds the other kind "
            "(dataset_type.txt says which)"
        )
    return data
