"""The component ablation: what each part of the recipe adds to the baseline (the paper's Table 4)."""

from __future__ import annotations

from filip.report.rows.cells import Inputs, published_rows, recall_columns, task_outcomes
from filip.report.table import Cell, Column, Table

VARIANTS = "our own variants"


def build(inputs: Inputs) -> Table:
    columns = _columns(inputs)
    rows = []
    for run in inputs.study.rows("component_ablation"):
        section = VARIANTS if "variant_of" in inputs.study.runs.get(run, {}) else ""
        cells = {column.key: _cell(inputs, run, column.key) for column in columns}
        rows.append(inputs.row(run, cells, section))
    notes = ["Each middle row adds one component to the baseline; the last row has all of them."]
    block = inputs.published_block("component_ablation")
    if set(block["columns"]) & {column.key for column in columns}:
        rows += published_rows(block, columns)
    else:
        notes.insert(1, "The paper's table is over MSCOCO and ImageNet, so its rows are not shown.")
    return Table("component_ablation", "Component ablation (%)", columns, rows, notes)


def _columns(inputs: Inputs) -> list[Column]:
    """R@1 and R@5 of the first retrieval benchmark both ways, as in the paper, then each task and their mean."""
    columns = recall_columns(inputs, inputs.study.benchmarks("retrieval")[:1], ("r1", "r5"))
    tasks = inputs.study.benchmarks("zero_shot")
    columns += [
        Column(f"{task}_top1", inputs.title(task), "Zero-shot", outcomes=task_outcomes(inputs, [task]))
        for task in tasks
    ]
    if len(tasks) > 1:
        columns.append(Column("average", "average", "Zero-shot", outcomes=task_outcomes(inputs, tasks)))
    return columns


def _cell(inputs: Inputs, run: str, key: str) -> Cell:
    if key == "average":
        return inputs.average_cell(run)
    if key.endswith("_top1"):
        return inputs.task_cell(run, key.removesuffix("_top1"))
    benchmark, direction, rank = key.rsplit("_", 2)
    return inputs.recall_cell(run, benchmark, direction, rank)
