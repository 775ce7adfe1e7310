"""The efficiency ablation: what the loss costs in time and memory, beside the paper's own measurements."""

from __future__ import annotations

from typing import Any, Protocol

from filip.report.study import Results, Study
from filip.report.table import Cell, Column, Row, Table, published_cell, text_cell

__all__ = ["efficiency_table"]


class TaskAverages(Protocol):
    """What this table needs of the other tables' builder."""

    tasks: list[str]

    def title(self, benchmark: str) -> str: ...

    def average_cell(self, run: str) -> Cell: ...


def efficiency_table(
    study: Study, results: Results, published: dict[str, Any], builder: TaskAverages
) -> Table:
    """One row per entry of the study's ``efficiency``, then the published rows."""
    measure = "imagenet_top1" if builder.tasks == ["imagenet"] else "accuracy"
    what = (
        f"{builder.title(builder.tasks[0])} top-1"
        if len(builder.tasks) == 1
        else f"mean of {len(builder.tasks)} tasks"
    )
    columns = [
        Column("loss", "loss", unit="text", better="none"),
        Column("embed_dim", "dim", unit="number", better="none"),
        Column("precision", "precision", unit="text", better="none"),
        Column("token_percent", "tokens, %", unit="number", better="none"),
        Column("seconds_per_iteration", "s / iteration", "Time", "seconds", "lower"),
        Column("time_ratio", "x first row", "Time", "ratio", "lower"),
        Column("memory_mb", "MB / rank", "Memory", "mb", "lower"),
        Column("memory_ratio", "x first row", "Memory", "ratio", "lower"),
        Column(measure, what, "Zero-shot accuracy"),
    ]
    rows = [_row(results, builder, name, entry, measure) for name, entry in study.efficiency.items()]
    _add_ratios(rows)
    rows += _published_rows(published, measure)
    notes = [
        "Time and memory are measured in short trainings (median step; peak memory, largest over ranks). "
        "Ratios are to the first row of the same block, so that different machines compare.",
        "Accuracy is that of the fully trained run with the same settings, where there is one.",
    ]
    return Table("efficiency_ablation", "Efficiency of the loss", columns, rows, notes)


def _row(results: Results, builder: TaskAverages, name: str, entry: dict[str, Any], measure: str) -> Row:
    found = results.efficiency(name)
    why = results.why("efficiency", f"{name}.json")
    cells = {key: text_cell(entry.get(key)) for key in ("loss", "precision")}
    for key in ("embed_dim", "token_percent"):
        cells[key] = Cell(entry[key]) if entry.get(key) is not None else Cell(reason="does not apply")
    for key, source in (
        ("seconds_per_iteration", "seconds_per_iteration"),
        ("memory_mb", "peak_memory_mb"),
    ):
        value = (found or {}).get(source)
        cells[key] = (
            Cell(value) if value is not None else Cell(reason=why if found is None else "not measured")
        )
    trained = entry.get("accuracy_of")
    cells[measure] = builder.average_cell(trained) if trained else Cell(reason="not trained to the end")
    commit = (found or {}).get("commit")
    return Row(
        str(entry.get("label", name)),
        "ours",
        cells,
        "measured here",
        name,
        results.run_id(name),
        commit,
    )


def _published_rows(published: dict[str, Any], measure: str) -> list[Row]:
    block = published.get("efficiency_ablation") or {"columns": []}
    rows = []
    for label, values in block.items():
        if label == "columns":
            continue
        numbers = dict(zip(block["columns"], values, strict=True))
        cells = {"precision": text_cell(numbers["precision"]), "loss": text_cell("late interaction")}
        if label == "orig":
            cells["loss"] = text_cell("global")
        for key in ("embed_dim", "token_percent", "seconds_per_iteration", "memory_mb"):
            cells[key] = Cell(numbers[key]) if numbers[key] is not None else Cell(reason="does not apply")
        cells[measure] = (
            published_cell(numbers["imagenet_top1"])
            if measure == "imagenet_top1"
            else Cell(reason="published on ImageNet, which this study does not evaluate")
        )
        rows.append(Row(label, "paper", cells, "published: ViT-B/32, 8 V100, 512 per GPU"))
    _add_ratios(rows)
    return rows


def _add_ratios(rows: list[Row]) -> None:
    """Time and memory relative to the first row."""
    for ratio, key in (("time_ratio", "seconds_per_iteration"), ("memory_ratio", "memory_mb")):
        base = rows[0].cells[key].value if rows else None
        for row in rows:
            value = row.cells[key].value
            if isinstance(value, int | float) and isinstance(base, int | float) and base:
                row.cells[ratio] = Cell(value / base)
            else:
                row.cells[ratio] = Cell(reason=row.cells[key].reason or "the first row has no value")
