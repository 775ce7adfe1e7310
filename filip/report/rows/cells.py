"""Turn a study, its results and the published numbers into the cells of tables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from filip.eval import protocols
from filip.eval.benchmark import BenchmarkCard
from filip.report.results import Results
from filip.report.table import Cell, Column, Row, average, combine
from filip.study import Study
from filip.study.benchmarks import card_of


@dataclass(frozen=True)
class Figure:
    """A column of a protocol's table, on one benchmark."""

    protocol: str
    benchmark: str
    column: protocols.Column

    @property
    def key(self) -> str:
        """Return the name of its column in the report."""
        return "_".join(filter(None, (self.benchmark, self.column.key)))


@dataclass(frozen=True)
class Inputs:
    """Everything that a table is built from. cards: the benchmarks' cards by name."""

    study: Study
    results: Results
    published: dict[str, Any]
    cards: dict[str, BenchmarkCard]

    @staticmethod
    def of(study: Study, results: Results, published: dict[str, Any]) -> Inputs:
        """Collect the inputs with the card of every benchmark that the study evaluates. UserError if one is missing."""
        cards = {name: card_of(study.evaluation, name) for name in study.all_benchmarks}
        return Inputs(study, results, published, cards)

    def title(self, benchmark: str) -> str:
        """Return a benchmark's name in print."""
        card = self.cards.get(benchmark)
        return card.title if card else benchmark

    def published_block(self, name: str) -> dict[str, Any]:
        """Return a block of the published numbers: ``columns``, then rows by label; no columns if it does not exist."""
        return dict(self.published.get(name) or {"columns": []})

    def published_names(self, protocol: str) -> dict[str, str]:
        """Return the published names of a protocol's benchmarks, by our name; only if the paper has them.

        Their cards have it (``published``): the file of a card may be called anything.
        """
        names = {name: self.cards[name].published for name in self.study.benchmarks(protocol)}
        return {name: theirs for name, theirs in names.items() if theirs is not None}

    # ---- rows ----------------------------------------------------------------------------------------

    def row(self, run: str, cells: dict[str, Cell], section: str = "", suffix: str = "") -> Row:
        """Return a measured row: a run of this study, or a peer, that is somebody else's model scored by us."""
        training = self.results.training(run) or {}
        kind = "ours" if run in self.study.trained else "peer"
        run_id = self.results.run_id(run) or self.study.peers.get(run, {}).get("model")
        label = self.study.label(run) + tokens_kept(training.get("config") or {}) + suffix
        return Row(label, kind, cells, section, run, run_id, training.get("commit"))

    # ---- figures of a protocol ----------------------------------------------------------------------

    def figures(self, protocol: str, table: str = "", benchmarks: Iterable[str] | None = None) -> list[Figure]:
        """Return the columns that a protocol's table has in the report. table: one of its further tables.

        benchmarks: None: all that the study evaluates.
        """
        declared = protocols.protocol_of(protocol)
        columns = declared.more.get(table, declared.table).columns
        return [
            Figure(protocol, name, column)
            for name in (self.study.benchmarks(protocol) if benchmarks is None else benchmarks)
            for column in columns
            if column.in_report and (column.only is None or column.only(self.cards[name]))
        ]

    def column(self, figure: Figure, title: str | None = None) -> Column:
        """Return a figure's column. Where a protocol has one on each benchmark, benchmarks are below its title.

        title: instead of the figure's.
        """
        card, column = self.cards[figure.benchmark], figure.column
        title = title or column.titled(card.metric)
        unit = "percent" if column.unit == "%" else "number"
        if unit == "number" and column.unit:
            title += f", {column.unit}"
        group = ", ".join(filter(None, (card.title, column.group)))
        if sum(one.in_report for one in protocols.protocol_of(figure.protocol).table.columns) == 1:
            title, group = group, title
        outcomes = [figure.benchmark + column.outcome.format(metric=card.metric)] if column.outcome else []
        return Column(figure.key, title, group, unit, outcomes, column.headline)

    def numbers(self, run: str, protocol: str, benchmark: str) -> dict[str, Any] | None:
        """Return a training's numbers of a benchmark; None if it was not evaluated."""
        result = self.results.evaluation(run, protocol) or {}
        numbers: dict[str, Any] | None = result.get("benchmarks", {}).get(benchmark)
        return numbers

    def cell(self, run: str, figure: Figure, table: str = "", part: str = "") -> Cell:
        """Return a figure of a run, the mean over its seeds. part: the row, where the table has several for a run."""
        members = self.study.replicas(run, figure.protocol)
        cell = combine([self._cell(member, figure, table, part) for member in members])
        results = [self.results.evaluation(member, figure.protocol) or {} for member in members]
        if figure.column.similarity not in ("", "mean") and any(one.get("scorer") == "pooled" for one in results):
            cell = replace(cell, reason=cell.reason or "a pooled model has one similarity")
        return cell

    def _cell(self, run: str, figure: Figure, table: str = "", part: str = "") -> Cell:
        numbers = self.numbers(run, figure.protocol, figure.benchmark)
        if numbers is None:
            return Cell(reason=self.why_empty(run, figure.protocol, figure.benchmark))
        protocol = protocols.protocol_of(figure.protocol)
        if table in protocol.more and (split := protocol.more[table].rows):
            numbers = split(numbers).get(part)
            if numbers is None:
                return Cell(reason="not evaluated")
        value = protocol.measure(figure.column, numbers)
        interval = list(value.interval) if value.interval else None
        return Cell(None if value.reason else value.value, value.chance, value.n, interval, reason=value.reason)

    def average_cell(self, run: str, protocol: str = "zero_shot") -> Cell:
        """Return the plain mean over the protocol's benchmarks; over seeds, the mean of their means."""
        column = protocols.protocol_of(protocol).table.columns[0]
        figures = [figure for figure in self.figures(protocol) if figure.column == column]
        members = self.study.replicas(run, protocol)
        return combine([average([self._cell(member, figure) for figure in figures], "task") for member in members])

    def average_column(self, protocol: str, title: str, group: str) -> Column:
        """Return the column of the mean over a protocol's benchmarks."""
        outcomes = [outcome for figure in self.figures(protocol) for outcome in self.column(figure).outcomes]
        return Column("average", title, group, outcomes=outcomes, headline=True)

    def why_empty(self, run: str, protocol: str, benchmark: str) -> str:
        """Return why an evaluation of a run has no result for a benchmark."""
        facts = self.results.evaluation(run, protocol) or {}
        if why := facts.get("skipped", {}).get(benchmark):
            return f"not run: {why}"
        return self.results.why("eval", run, protocol, f"{benchmark}.json")


def tokens_kept(config: dict[str, Any]) -> str:
    """Return the suffix of a row's label for a token-wise training with a part of the tokens; "" if it keeps all."""
    ratio = config.get("token_keep_ratio", 1.0)
    if ratio == 1.0 or (config.get("model") or {}).get("interaction") == "pooled":
        return ""
    return f", {100 * ratio:g} % of tokens"
