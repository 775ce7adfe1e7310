"""The tables of evaluations: zero-shot (the paper's Table 1), retrieval (Tables 2 and 3) and those of other protocols.

Cells are from a study, its results and the published numbers in eval/paper_tables.yaml; titles and columns are those of
``PROTOCOL`` in filip/eval/protocols/retrieval.py and its siblings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from filip.common.table_writer import differing
from filip.eval.benchmark import BenchmarkCard
from filip.eval.cards import load_card
from filip.eval.protocols import Column as Number
from filip.eval.protocols import protocol_of
from filip.eval.scorer import RANKINGS
from filip.report.results import Results
from filip.report.table import Cell, Column, Row, Table, average, combine, published_cell
from filip.study import Study

ZERO_SHOT, FINE_TUNED = "zero-shot", "fine-tuned"
TRANSFERRED = "zero-shot after fine-tuning elsewhere (*)"
SECTIONS = (ZERO_SHOT, TRANSFERRED, FINE_TUNED)  # of a table by tuning


@dataclass(frozen=True)
class Figure:
    """A column of a protocol's table, on one benchmark."""

    protocol: str
    benchmark: str
    column: Number

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
        cards = {name: load_card(name) for name in study.all_benchmarks}
        return Inputs(study, results, published, cards)

    def title(self, benchmark: str) -> str:
        """Return a benchmark's name in print."""
        card = self.cards.get(benchmark)
        return card.title if card else benchmark

    def published_block(self, name: str) -> dict[str, Any]:
        """Return a block of the published numbers: ``columns``, then rows by label; no columns if it does not exist."""
        return dict(self.published.get(name) or {"columns": []})

    # ---- rows ----------------------------------------------------------------------------------------

    def row(self, run: str, cells: dict[str, Cell], section: str = "", suffix: str = "") -> Row:
        """Return a measured row: a run of this study, or a peer, that is somebody else's model scored by us."""
        training = self.results.training(run) or {}
        kind = "ours" if run in self.study.trained else "peer"
        run_id = self.results.run_id(run) or self.study.peers.get(run, {}).get("model")
        config = training.get("config") or {}
        ratio, pooled = config.get("token_keep_ratio", 1.0), (config.get("model") or {}).get("interaction") == "pooled"
        kept = "" if ratio == 1.0 or pooled else f", {100 * ratio:g} % of tokens"
        return Row(self.study.label(run) + kept + suffix, kind, cells, section, run, run_id, training.get("commit"))

    # ---- figures of a protocol ----------------------------------------------------------------------

    def figures(self, protocol: str, table: str = "", benchmarks: Iterable[str] | None = None) -> list[Figure]:
        """Return the columns that a protocol's table has in the report. table: one of its further tables.

        benchmarks: None: all that the study evaluates.
        """
        declared = protocol_of(protocol)
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
        if sum(one.in_report for one in protocol_of(figure.protocol).table.columns) == 1:
            title, group = group, title
        outcomes = [figure.benchmark + column.outcome.format(metric=card.metric)] if column.outcome else []
        return Column(figure.key, title, group, unit, outcomes, column.headline)

    def numbers(self, run: str, protocol: str, benchmark: str) -> dict[str, Any] | None:
        """Return a training's numbers of a benchmark; None if it was not evaluated."""
        result = self.results.evaluation(run, protocol) or {}
        numbers: dict[str, Any] | None = result.get("benchmarks", {}).get(benchmark)
        return numbers

    def cell(self, run: str, figure: Figure) -> Cell:
        """Return a figure of a run, the mean over its seeds."""
        members = self.study.replicas(run, figure.protocol)
        cell = combine([self._cell(member, figure) for member in members])
        results = [self.results.evaluation(member, figure.protocol) or {} for member in members]
        if figure.column.similarity not in ("", "mean") and any(one.get("scorer") == "pooled" for one in results):
            cell = replace(cell, reason=cell.reason or "a pooled model has one similarity")
        return cell

    def _cell(self, run: str, figure: Figure) -> Cell:
        numbers = self.numbers(run, figure.protocol, figure.benchmark)
        if numbers is None:
            skipped = (self.results.evaluation(run, figure.protocol) or {}).get("skipped", {})
            why = skipped.get(figure.benchmark)
            missing = self.results.why("eval", run, figure.protocol, f"{figure.benchmark}.json")
            return Cell(reason=f"not run: {why}" if why else missing)
        numbers = {"by": dict.fromkeys(RANKINGS, numbers), **numbers}  # a pooled model has one similarity
        value = protocol_of(figure.protocol).measure(figure.column, numbers)
        interval = list(value.interval) if value.interval else None
        return Cell(None if value.reason else value.value, value.chance, value.n, interval, reason=value.reason)

    def average_cell(self, run: str, protocol: str = "zero_shot") -> Cell:
        """Return the plain mean over the protocol's benchmarks; over seeds, the mean of their means."""
        column = protocol_of(protocol).table.columns[0]
        figures = [figure for figure in self.figures(protocol) if figure.column == column]
        members = self.study.replicas(run, protocol)
        return combine([average([self._cell(member, figure) for figure in figures], "task") for member in members])

    def average_column(self, protocol: str, title: str, group: str) -> Column:
        """Return the column of the mean over a protocol's benchmarks."""
        outcomes = [outcome for figure in self.figures(protocol) for outcome in self.column(figure).outcomes]
        return Column("average", title, group, outcomes=outcomes, headline=True)


# ---- the table of a protocol -----------------------------------------------------------------------------


def build(inputs: Inputs, name: str, protocol: str) -> Table:
    """Build the table ``name`` of a protocol: its columns on each benchmark, a row for each run, the published rows."""
    declared = protocol_of(protocol)
    table = declared.more.get(name, declared.table)
    figures = inputs.figures(protocol, name)
    columns = [inputs.column(figure) for figure in figures]
    averaged = table.average and len(figures) > 1
    if averaged:
        for column in columns:
            column.headline = False
        columns.append(inputs.average_column(protocol, "average", "mean"))
    rows: list[Row] = []
    for run in inputs.study.rows(name):
        if table.by_tuning and run in inputs.study.fine_tunes:
            rows += _fine_tuned(inputs, run, figures)
            continue
        cells = {figure.key: inputs.cell(run, figure) for figure in figures}
        if table.average:
            cells["average"] = inputs.average_cell(run, protocol)
        rows.append(inputs.row(run, cells, ZERO_SHOT if table.by_tuning else ""))
    published = []
    for block, section in table.published.items():
        keys = {f.key: key for f in figures if (key := published_key(inputs, f))}
        same = sorted(keys.values()) == sorted(inputs.published_block(block)["columns"])
        keys["average"] = "average" if same else ""  # of the paper only if over the same benchmarks
        published += published_rows(inputs, block, keys, section)
    rows += published
    if table.by_tuning:
        rows.sort(key=lambda row: (SECTIONS.index(row.section), row.kind == "paper"))
    notes = [declared.note] if table is declared.table else []
    notes += table.notes
    if table.published and not published:
        notes.append("None of these benchmarks is in the paper, so no published row is shown.")
    if table.card_notes:
        cards = [inputs.cards[benchmark] for benchmark in inputs.study.benchmarks(protocol)]
        notes += [f"{card.title}: {card.note}" for card in cards if card.note]
    if table is declared.table:
        notes += warnings(inputs, protocol, inputs.study.rows(name))
        notes += differences(inputs, protocol, inputs.study.rows(name))
    return Table(name, table.heading, columns, rows, notes)


def _fine_tuned(inputs: Inputs, run: str, figures: list[Figure]) -> list[Row]:
    """Return a fine-tuning on the benchmarks that it was made for and, in a separate row, on the others.

    Those are the benchmarks with a training split that it used; if no card names its source, those without one.
    """
    source = str(inputs.study.fine_tunes[run].get("source"))
    tuned_on = {figure.benchmark: inputs.cards[figure.benchmark].fine_tuned_on for figure in figures}
    own = [name for name, sources in tuned_on.items() if source in sources] or [n for n in tuned_on if not tuned_on[n]]
    elsewhere = Cell(reason="in the other section: depends on what it was fine-tuned on")

    def cells(benchmarks: list[str]) -> dict[str, Cell]:
        return {f.key: inputs.cell(run, f) if f.benchmark in benchmarks else elsewhere for f in figures}

    rows = [inputs.row(run, cells(own), FINE_TUNED)]
    if other := [name for name in tuned_on if name not in own]:
        rows.append(inputs.row(run, cells(other), TRANSFERRED, suffix=" *"))
    return rows


# ---- published numbers ---------------------------------------------------------------------------------


def published_key(inputs: Inputs, figure: Figure) -> str:
    """Return a figure's name in published numbers; "" if the paper has none of that benchmark."""
    name = inputs.cards[figure.benchmark].published
    return "_".join(filter(None, (name, figure.column.key))) if name else ""


def published_rows(inputs: Inputs, block: str, keys: Mapping[str, str], section: str) -> list[Row]:
    """Return the rows of a block of published numbers, empty where it has no number; none if it has none at all.

    keys: {a column's key: its key there}. A label that ends in * was fine-tuned on another benchmark.
    """
    content = inputs.published_block(block)
    columns = content.pop("columns")
    numbers = {label: _flat(columns, entry) for label, entry in content.items()}
    if not {name for found in numbers.values() for name in found} & ({*keys.values()} - {"average"}):
        return []
    rows = []
    for label, found in numbers.items():
        cells = {key: published_cell(found.get(name)) for key, name in keys.items()}
        if keys.get("average") == "" and "average" in found:
            cells["average"] = Cell(reason="published over other benchmarks")
        rows.append(Row(label, "paper", cells, TRANSFERRED if label.endswith("*") else section))
    return rows


def _flat(columns: Sequence[str], entry: Any) -> dict[str, float]:
    """Return an entry's numbers by column; of three recalls, by column and rank."""
    values = entry["values"] if isinstance(entry, Mapping) else entry
    flat: dict[str, Any] = {"average": entry["average"]} if isinstance(entry, Mapping) else {}
    for column, value in zip(columns, values, strict=True):
        recalls = dict(zip(("r1", "r5", "r10"), value, strict=True)) if isinstance(value, list) else {"": value}
        flat |= {"_".join(filter(None, (column, rank))): number for rank, number in recalls.items()}
    return flat


# ---- notes below a table -----------------------------------------------------------------------------------


def warnings(inputs: Inputs, protocol: str, runs: Sequence[str]) -> list[str]:
    """Return the warnings of the evaluations of these runs, each once.

    They are of a test set of another size, another split, scores that are not finite.
    """
    notes = []
    for run in runs:
        for name, numbers in (inputs.results.evaluation(run, protocol) or {}).get("benchmarks", {}).items():
            where = f"{inputs.study.label(run)}, {inputs.title(name)}"
            if numbers.get("protocol"):
                notes.append(f"{inputs.title(name)}: {numbers['protocol']}.")
            if numbers.get("note"):
                notes.append(f"{inputs.title(name)}: {numbers['note']}.")
            if bad := numbers.get("not_finite"):
                notes.append(
                    f"{where}: {bad:,} of {numbers['n']:,} images have scores that are not finite; they rank last."
                )
    return list(dict.fromkeys(notes))


def differences(inputs: Inputs, protocol: str, runs: Sequence[str]) -> list[str]:
    """Write a sentence for each setting (prompts, ensemble, ranking, image size, precision) that rows do not share."""
    found = {}
    for run in runs:
        result = inputs.results.evaluation(run, protocol)
        if result:
            found[inputs.study.label(run)] = _settings(result)
    return [f"Rows differ in {setting}: {said}." for setting, said in differing(found)]


def _settings(result: dict[str, Any]) -> dict[str, str]:
    """Return a result file's facts about its making; nothing for missing facts."""
    own = result.get("settings") or {}
    ranking = {"i2t": own.get("rank_texts_by"), "t2i": own.get("rank_images_by")}
    settings = {
        "prompts": own.get("prompts"),
        "ensemble": {"score": "mean of scores", "embedding": "mean vector", "probability": "mean of probabilities"}.get(
            str(own.get("ensemble"))
        ),
        "ranking": ", ".join(f"{way} by {by}" for way, by in ranking.items() if by),
        "image size": f"{result['image_size']} px" if result.get("image_size") else None,
        "precision": result.get("precision"),
        "tokens": result.get("tokens"),
        "fit": result.get("fit"),
        "tokens of a text": result.get("tokens of a text") or own.get("text_tokens"),
    }
    return {name: str(value) for name, value in settings.items() if value}
