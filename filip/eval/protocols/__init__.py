"""The protocols of the evaluation. Each is one file of this folder, and its ``PROTOCOL`` says all that others ask.

    PROTOCOL = Protocol("retrieval", ("retrieval",), run, RetrievalSettings, columns=(Column(…), …), note="…")

A new protocol is a new file here, or in another installed package the entry point ``NAME = module:PROTOCOL`` of the
group ``filip.protocols``. ``filip eval`` then runs it on the cards of its kinds and takes its settings as
``NAME.setting=value``. Its name stands in its result files, and the tables read its columns.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from filip.errors import UserError
from filip.plugins import load_plugins

if TYPE_CHECKING:
    from filip.eval.cards import BenchmarkCard
    from filip.eval.context import Context
    from filip.eval.encoders import Encoder
    from filip.eval.outcomes import Record

Numbers = dict[str, Any]  # what a protocol found on one benchmark, as its result file holds it


@dataclass(frozen=True)
class NoSettings:
    """The settings of a protocol that has none."""


@dataclass(frozen=True)
class Column:
    """A number that a protocol reports for a benchmark.

    title: may name entries of the numbers, e.g. "{metric}". value, chance, interval: where the number, its chance and
    its 95 % interval are among the numbers, keys joined by dots; without chance "". unit: in which it is shown; "%" of
    a fraction.
    """

    title: str
    value: str = "value"
    chance: str = "chance"
    interval: str = "ci95"
    unit: str = "%"


@dataclass(frozen=True)
class Measured:
    """A column's number on one benchmark. interval: (low, high) of 95 %."""

    title: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None
    unit: str


def shown(value: float, unit: str) -> str:
    """Return a column's number, without the unit in which it is shown: a percentage with one decimal place."""
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.4g}"


@dataclass(frozen=True)
class Protocol:
    """A way to measure models on one kind of benchmark.

    title: its name in tables. kinds: the kinds of cards that it is for. run: see below; the outcome of each image goes
    into the record under the card's name. settings: a dataclass of options with their defaults. size: where the number
    of images is among the numbers. note: one line on what is measured. prepare: reads what a card needs, such as its
    prompts, so that a mistake is known before a model is loaded. settle: fills in settings that depend on the model.
    on_request: only where ``protocols=`` names it. in_parts: goes through images in batches that several jobs can share
    (``shard=``). citation: the papers that it comes from, for docs/related.md.
    """

    title: str
    kinds: tuple[str, ...]
    run: Callable[[Encoder, BenchmarkCard, Any, Context, Record], Numbers]
    settings: type
    columns: tuple[Column, ...]
    note: str
    prepare: Callable[[BenchmarkCard, Any, Context], object] | None = None
    settle: Callable[[Any, Encoder], Any] | None = None
    size: str = "n"
    on_request: bool = False
    in_parts: bool = False
    reads_prompts: bool = False
    citation: tuple[str, ...] = ()

    def measured(self, numbers: Numbers) -> list[Measured]:
        """Return the columns that a benchmark's numbers fill, in order."""
        found = []
        for column in self.columns:
            value = _at(numbers, column.value)
            if value is not None:
                title, interval = column.title.format_map(numbers), _at(numbers, column.interval)
                low_high = (float(interval[0]), float(interval[1])) if interval else None
                found.append(Measured(title, value, _at(numbers, column.chance), low_high, column.unit))
        return found

    def images(self, numbers: Numbers) -> int:
        """Return how many images a benchmark's numbers are for."""
        return int(_at(numbers, self.size) or 0)


def _at(numbers: Mapping[str, Any], path: str) -> Any:
    """Return the value at ``path``, keys joined by dots; None if there is none."""
    found: Any = numbers
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


BUILT_IN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def protocols() -> dict[str, Protocol]:
    """Return all protocols by name: this folder's, then other packages'. Raises UserError for a broken one."""
    found = {name: importlib.import_module(f"{__name__}.{name}").PROTOCOL for name in BUILT_IN}
    return found | load_plugins("filip.protocols", Protocol, found)


def protocol_of(name: str) -> Protocol:
    """Return the protocol ``name``. Raises UserError if there is none."""
    if name not in protocols():
        raise UserError(f"there is no protocol {name!r}; there are {', '.join(protocols())}")
    return protocols()[name]
