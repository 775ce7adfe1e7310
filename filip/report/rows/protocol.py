"""The table of a protocol, as its declaration has it (:class:`filip.eval.protocols.ReportTable`), and its notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from filip.common.table_writer import differing
from filip.eval.protocols import ReportTable, protocol_of
from filip.report.rows.cells import Figure, Inputs
from filip.report.table import Cell, Row, Table, published_cell

ZERO_SHOT, FINE_TUNED = "zero-shot", "fine-tuned"
TRANSFERRED = "zero-shot after fine-tuning elsewhere (*)"
SECTIONS = (ZERO_SHOT, TRANSFERRED, FINE_TUNED)  # of a table by tuning


def build(inputs: Inputs, name: str, protocol: str) -> Table:
    """Build the table ``name`` of a protocol: its columns on each benchmark, a row for each run, the published rows."""
    declared = protocol_of(protocol)
    table = declared.more.get(name, declared.table)
    figures = inputs.figures(protocol, name, _benchmarks(inputs, name, protocol, table))
    columns = [inputs.column(figure) for figure in figures]
    averaged = table.average and len(figures) > 1
    if averaged:
        for column in columns:
            column.headline = False
        columns.append(inputs.average_column(protocol, "average", "mean"))
    rows = [row for run in inputs.study.rows(name) for row in _rows(inputs, run, name, protocol, table, figures)]
    published = [
        row
        for block, section in table.published.items()
        for row in published_rows(inputs, block, _published_keys(inputs, block, figures), section)
    ]
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


def _benchmarks(inputs: Inputs, name: str, protocol: str, table: ReportTable) -> list[str]:
    """Return the benchmarks of a table: where it splits numbers into rows, those with the most rows."""
    benchmarks = inputs.study.benchmarks(protocol)
    runs = inputs.study.rows(name)
    parts = {one: len(_parts(inputs, table, protocol, runs, [one])) for one in benchmarks}
    return [one for one in benchmarks if parts[one] == max(parts.values())]


def _parts(inputs: Inputs, table: ReportTable, protocol: str, runs: list[str], benchmarks: list[str]) -> list[str]:
    """Return what follows the label of each row that any of these runs has on any of these benchmarks."""
    if table.rows is None:
        return [""]
    members = [member for run in runs for member in inputs.study.replicas(run, protocol)]
    found = [inputs.numbers(member, protocol, benchmark) for member in members for benchmark in benchmarks]
    return list(dict.fromkeys(["", *(part for numbers in found if numbers for part in table.rows(numbers))]))


def _rows(inputs: Inputs, run: str, name: str, protocol: str, table: ReportTable, figures: list[Figure]) -> list[Row]:
    """Return the rows of a run: one for each part of its numbers, or for benchmarks of its fine-tuning and others."""
    if table.by_tuning and run in inputs.study.fine_tunes:
        return _fine_tuned(inputs, run, figures)
    benchmarks = list(dict.fromkeys(figure.benchmark for figure in figures))
    rows = []
    for part in _parts(inputs, table, protocol, [run], benchmarks):
        cells = {figure.key: inputs.cell(run, figure, name, part) for figure in figures}
        if table.average:
            cells["average"] = inputs.average_cell(run, protocol)
        rows.append(inputs.row(run, cells, ZERO_SHOT if table.by_tuning else "", suffix=part))
    return rows


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


def _published_keys(inputs: Inputs, block: str, figures: list[Figure]) -> dict[str, str]:
    """Return {a column's key: its key in a block of published numbers}; of the average, over the same benchmarks."""
    keys = {f.key: name for f in figures if (name := published_key(inputs, f))}
    same = sorted(keys.values()) == sorted(inputs.published_block(block)["columns"])
    return keys | {"average": "average" if same else ""}


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
