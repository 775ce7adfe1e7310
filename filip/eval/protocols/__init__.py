"""The protocols of the evaluation. Each is one file of this folder, and others read its ``PROTOCOL``.

    table = ReportTable("Image-text retrieval (recall, %)", (Column("R@1", …), …))
    PROTOCOL = Protocol("retrieval", ("retrieval",), run, RetrievalSettings, table, note="…")

A new protocol is a new file here, or in another installed package the entry point ``NAME = module:PROTOCOL`` of the
group ``filip.protocols``. ``filip eval`` then runs it on the cards of its kinds and takes its settings as
``NAME.setting=value``, and a study that names its cards under ``eval.NAME`` has its table in the report.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from filip.common.errors import UserError
from filip.common.plugins import load_plugins
from filip.common.progress import say
from filip.eval.cards import METRIC_TITLES, BenchmarkCard
from filip.eval.families import AUTO, FAMILIES

if TYPE_CHECKING:
    from filip.eval.encode_set import Context
    from filip.eval.encoders import Encoder
    from filip.eval.outcomes import Record

Numbers = dict[str, Any]  # the numbers of a protocol on one benchmark, as in its result file


@dataclass(frozen=True)
class NoSettings:
    """The settings of a protocol that has none."""


@dataclass(frozen=True)
class Column:
    """A number that a protocol reports for a benchmark: a line of ``filip eval``, a column of the report's table.

    title: in print, with the card's metric for ``{metric}``. key: ends the name of the report's column, after the
    benchmark's; the first part of the name alone if "". group: a heading that several columns share. value, chance,
    interval, size: where the number, its chance, its 95 % interval and the number of images are among the numbers, keys
    joined by dots; without chance "", with the protocol's size "". unit: in which it is shown; "%" of a fraction.
    outcome: ends the name of the outcomes that it is the mean of, after the benchmark's, with the card's metric for
    ``{metric}``; "" if rows are not compared in pairs by it. only: the cards that have it; None: all. headline: whether
    it is among the findings of a study. in_report: whether a table of the report has it. similarity: by which it is, of
    a token-wise model; a pooled model has one only, "mean".
    """

    title: str
    key: str = ""
    value: str = "value"
    chance: str = "chance"
    interval: str = "ci95"
    size: str = ""
    group: str = ""
    unit: str = "%"
    outcome: str = ""
    only: Callable[[BenchmarkCard], bool] | None = None
    headline: bool = False
    in_report: bool = True
    similarity: str = ""

    def titled(self, metric: str) -> str:
        """Return the title for a card's metric."""
        return self.title.format(metric=METRIC_TITLES.get(metric, metric))


@dataclass(frozen=True)
class Measured:
    """A column's number on one benchmark. interval: (low, high) of 95 %. reason: why there is no value, NaN."""

    title: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None
    unit: str
    n: int
    reason: str | None = None


def shown(value: float, unit: str) -> str:
    """Return a column's number, without the unit in which it is shown: a percentage with one decimal place."""
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.4g}"


@dataclass(frozen=True)
class ReportTable:
    """A table of the report: a row for each run, the columns of each benchmark.

    heading: its title. notes: sentences below it. average: whether the mean of the first column over several benchmarks
    is a column too. published: the blocks of ``eval/paper_tables.yaml`` with its rows, and the section of each.
    by_tuning: whether fine-tuned models are in a section of their own, with the benchmarks that they were tuned for.
    card_notes: whether the notes of the benchmarks' cards are below it.
    """

    heading: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()
    average: bool = False
    published: Mapping[str, str] = field(default_factory=dict)
    by_tuning: bool = False
    card_notes: bool = False


@dataclass(frozen=True)
class Protocol:
    """A way to measure models on one kind of benchmark.

    title: its name in tables. kinds: the kinds of cards that it is for. run: see below; the outcome of each image goes
    into the record under the card's name. settings: a dataclass of options with their defaults. table: its table in the
    report; ``filip eval`` prints the same columns. note: one line on the measure. more: further tables of the
    report, by name. prepare: reads a card's needs, such as its prompts, so that a mistake is known before a model is
    loaded. settle: fills in settings that depend on the model. size: where the number of images is among the numbers.
    version: raised when it gives other numbers of the same model and data, so that no result of before is kept.
    on_request: only where ``protocols=`` names it. while_training: can be measured while training.
    on_patches: asks where in a picture a model's tokens are.
    """

    title: str
    kinds: tuple[str, ...]
    run: Callable[[Encoder, BenchmarkCard, Any, Context, Record], Numbers]
    settings: type
    table: ReportTable
    note: str
    more: Mapping[str, ReportTable] = field(default_factory=dict)
    prepare: Callable[[BenchmarkCard, Any, Context], object] | None = None
    settle: Callable[[Any, Encoder], Any] | None = None
    size: str = "n"
    version: int = 1
    on_request: bool = False
    while_training: bool = False
    reads_prompts: bool = False
    on_patches: bool = False

    def measure(self, column: Column, numbers: Numbers) -> Measured:
        """Return a column's number among a benchmark's numbers."""
        interval = value_at(numbers, column.interval)
        value = value_at(numbers, column.value)
        reason = value_at(numbers, f"{column.value.rpartition('.')[0]}.reason".lstrip(".")) or "not measured"
        return Measured(
            f"{column.group} {column.titled(str(numbers.get('metric')))}".strip(),
            math.nan if value is None else value,
            value_at(numbers, column.chance),
            (float(interval[0]), float(interval[1])) if interval else None,
            column.unit,
            int(value_at(numbers, column.size or self.size) or 0),
            None if value is not None else str(reason),
        )

    def measured(self, numbers: Numbers, pooled: bool = False) -> list[Measured]:
        """Return the columns that a benchmark's numbers fill, in order; a pooled model has one similarity only."""
        columns = [column for table in (self.table, *self.more.values()) for column in table.columns]
        columns = [column for column in columns if not pooled or column.similarity in ("", "mean")]
        return [value for column in columns if (value := self.measure(column, numbers)).reason is None]


def value_at(numbers: Mapping[str, Any], path: str) -> Any:
    """Return the value at ``path``, keys joined by dots; None if there is none."""
    value: Any = numbers
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


BUILT_IN = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


@cache
def protocols() -> dict[str, Protocol]:
    """Return all protocols by name: this folder's, then other packages'. Raises UserError for a broken one."""
    modules = {name: importlib.import_module(f"{__name__}.{name}").PROTOCOL for name in BUILT_IN}
    return modules | load_plugins("filip.protocols", Protocol, modules)


def protocol_of(name: str) -> Protocol:
    """Return the protocol ``name``. Raises UserError if there is none."""
    if name not in protocols():
        raise UserError(f"there is no protocol {name!r}; there are {', '.join(protocols())}")
    return protocols()[name]


def evaluate(
    name: str, encoder: Encoder, cards: Sequence[BenchmarkCard], context: Context, settings: Any = None
) -> tuple[dict[str, Any], Record]:
    """Return (the entries of a result file beyond the model, the outcome of each image) of the protocol ``name`` on the
    cards.

    settings: of the protocol; None: its defaults. Raises UserError as the protocol does.
    """
    protocol = protocol_of(name)
    settings = protocol.settings() if settings is None else settings
    if protocol.settle is not None:
        settings = protocol.settle(settings, encoder)
    benchmarks: dict[str, Numbers] = {}
    record: Record = {}
    prompts = []
    for card in cards:
        of_card = context.of(encoder, card)
        benchmarks[card.name] = numbers = protocol.run(encoder, card, settings, of_card, record)
        prompts.append(of_card.prompts)
        say(f"{card.name}: {summary(protocol, numbers, not encoder.token_wise)}")
    if not prompts:  # nothing was there to evaluate
        prompts = [FAMILIES[encoder.family].prompts if context.prompts == AUTO else context.prompts]
    part = {} if context.text_tokens == "all" else {"text_tokens": context.text_tokens}
    return {
        "protocol": name,
        "settings": part | settings_of(protocol, settings, ", ".join(dict.fromkeys(prompts))),
        "benchmarks": benchmarks,
    }, record


def settings_of(protocol: Protocol, settings: Any, prompts: str) -> dict[str, Any]:
    """Return a result's dependencies beyond model and data: the protocol's settings and any prompts it reads."""
    return {**({"prompts": prompts} if protocol.reads_prompts else {}), **asdict(settings)}


def summary(protocol: Protocol, found: Numbers, pooled: bool = False) -> str:
    """Return the columns of a protocol on one benchmark in a line, and its warnings."""
    columns = []
    for one in protocol.measured(found, pooled):
        by_chance = "" if one.chance is None else f" (chance {shown(one.chance, one.unit)})"
        columns.append(f"{one.title} {shown(one.value, one.unit)} {one.unit}".rstrip() + by_chance)
    warning = [found["cut_note"]] if "cut_note" in found else []
    return "; ".join([*columns, *warning]) or "nothing to measure"
