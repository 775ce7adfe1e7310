"""Zero-shot classification, with the paper's rows where the benchmarks are the same."""

from __future__ import annotations

from filip.report.rows.cells import Inputs, task_table
from filip.report.rows.notes import differences, warnings
from filip.report.table import Cell, Row, Table, published_cell


def build(inputs: Inputs) -> Table:
    columns, rows = task_table(inputs, "zero_shot")
    published = _published(inputs)
    notes = [] if published else ["None of these benchmarks is in the paper, so no published row is shown."]
    notes += warnings(inputs, "zero_shot") + differences(inputs, "zero_shot")
    return Table("zero_shot", "Zero-shot classification (accuracy, %)", columns, rows + published, notes)


def _published(inputs: Inputs) -> list[Row]:
    block = inputs.published_block("zero_shot_classification")
    names = inputs.published_names("zero_shot")
    tasks = inputs.study.benchmarks("zero_shot")
    same_benchmarks = sorted(names.get(task, "") for task in tasks) == sorted(block["columns"])
    rows = []
    for label, entry in block.items() if set(names.values()) & set(block["columns"]) else ():
        if label == "columns":
            continue
        numbers = dict(zip(block["columns"], entry["values"], strict=True))
        cells = {task: published_cell(numbers.get(names.get(task))) for task in tasks}
        cells["average"] = (
            published_cell(entry["average"]) if same_benchmarks else Cell(reason="published over other benchmarks")
        )
        rows.append(Row(label, "paper", cells, "published"))
    return rows
