"""Image-text retrieval: zero-shot, fine-tuned, and zero-shot after fine-tuning on another benchmark."""

from __future__ import annotations

from filip.report.rows.cells import DIRECTIONS, RANKS, Inputs, recall_columns
from filip.report.rows.notes import differences, warnings
from filip.report.table import Cell, Row, Table, published_cell

TRANSFERRED = "zero-shot after fine-tuning elsewhere (*)"
SECTIONS = ("zero-shot", TRANSFERRED, "fine-tuned")


def build(inputs: Inputs) -> Table:
    benchmarks = inputs.study.benchmarks("retrieval")
    rows = []
    for run in inputs.study.rows("retrieval"):
        if run in inputs.study.fine_tunes:
            rows += _fine_tuned(inputs, run)
        else:
            rows.append(inputs.row(run, _recalls(inputs, run, benchmarks), "zero-shot"))
    rows += _published(inputs, "zero_shot_retrieval", "zero-shot")
    rows += _published(inputs, "fine_tuned_retrieval", "fine-tuned")
    rows.sort(key=lambda row: (SECTIONS.index(row.section), row.kind == "paper"))
    notes = ["Image to text counts a hit if any of the image's captions is among the first k."]
    notes += warnings(inputs, "retrieval") + differences(inputs, "retrieval")
    columns = recall_columns(inputs, benchmarks, RANKS)
    return Table("retrieval", "Image-text retrieval (recall, %)", columns, rows, notes)


def _fine_tuned(inputs: Inputs, run: str) -> list[Row]:
    """Return a fine-tuning on the benchmarks that it was made for and, in a separate row, on the others."""
    own = _own_benchmarks(inputs, run)
    rows = [inputs.row(run, _recalls(inputs, run, own), "fine-tuned")]
    if other := [name for name in inputs.study.benchmarks("retrieval") if name not in own]:
        rows.append(inputs.row(run, _recalls(inputs, run, other), TRANSFERRED, suffix=" *"))
    return rows


def _own_benchmarks(inputs: Inputs, run: str) -> list[str]:
    """Return the benchmarks whose training split a fine-tuning used; if no card names its source, those naming none."""
    source = str(inputs.study.fine_tunes[run].get("source"))
    benchmarks = inputs.study.benchmarks("retrieval")
    own = [name for name in benchmarks if source in inputs.cards[name].fine_tuned_on]
    return own or [name for name in benchmarks if not inputs.cards[name].fine_tuned_on]


def _recalls(inputs: Inputs, run: str, benchmarks: list[str]) -> dict[str, Cell]:
    elsewhere = Cell(reason="in the other section: depends on what it was fine-tuned on")
    return {
        f"{name}_{direction}_{rank}": (
            inputs.recall_cell(run, name, direction, rank) if name in benchmarks else elsewhere
        )
        for name in inputs.study.benchmarks("retrieval")
        for direction in DIRECTIONS
        for rank in RANKS
    }


def _published(inputs: Inputs, block_name: str, section: str) -> list[Row]:
    block = inputs.published_block(block_name)
    names = inputs.published_names("retrieval")
    columns = {f"{name}_{way}" for name in names.values() for way in DIRECTIONS}
    rows = []
    for label, entry in block.items() if columns & set(block["columns"]) else ():
        if label == "columns":
            continue
        numbers = dict(zip(block["columns"], entry, strict=True))
        cells = {}
        for ours in inputs.study.benchmarks("retrieval"):
            for way in DIRECTIONS:
                values = numbers.get(f"{names.get(ours)}_{way}") or [None] * len(RANKS)
                for rank, value in zip(RANKS, values, strict=True):
                    cells[f"{ours}_{way}_{rank}"] = published_cell(value)
        rows.append(Row(label, "paper", cells, TRANSFERRED if label.endswith("*") else section))
    return rows
