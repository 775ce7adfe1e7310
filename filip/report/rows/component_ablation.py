"""The component ablation: what each part of the recipe adds to the baseline (the paper's Table 4)."""

from __future__ import annotations

from filip.report.rows.cells import Inputs, recall_columns, task_outcomes
from filip.report.table import Cell, Column, Row, Table, published_cell

VARIANTS = "our own variants"


def build(inputs: Inputs) -> Table:
    columns = _columns(inputs)
    rows = []
    for run in inputs.study.rows("component_ablation"):
        section = VARIANTS if "variant_of" in inputs.study.runs.get(run, {}) else ""
        cells = {column.key: _cell(inputs, run, column.key) for column in columns}
        rows.append(inputs.row(run, cells, section))
    notes = ["Each middle row adds one component to the baseline; the last row has all of them."]
    published = _published(inputs, columns)
    if not published:
        notes.insert(1, "The paper's table is over MSCOCO and ImageNet, so its rows are not shown.")
    rows += published
    return Table("component_ablation", "Component ablation (%)", columns, rows, notes)


def _columns(inputs: Inputs) -> list[Column]:
    """Return R@1 and R@5 of the first retrieval benchmark both ways, as in the paper, then each task and their mean."""
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
    benchmark, figure = _parts(key)
    if not benchmark:
        return inputs.average_cell(run)
    if figure == "top1":
        return inputs.task_cell(run, benchmark)
    return inputs.recall_cell(run, benchmark, *figure.split("_"))


def _parts(key: str) -> tuple[str, str]:
    """Return the benchmark of a column, and which of its figures: "top1", or direction and rank as in "i2t_r1".

    The average over benchmarks belongs to none: "".
    """
    if key == "average":
        return "", key
    benchmark, *figure = key.rsplit("_", 1 if key.endswith("_top1") else 2)
    return benchmark, "_".join(figure)


def _published(inputs: Inputs, columns: list[Column]) -> list[Row]:
    """Return the paper's rows, empty where it has no number; none if it has none for any of the columns."""
    block = inputs.published_block("component_ablation")
    names = inputs.published_names("retrieval") | inputs.published_names("zero_shot")
    theirs = {}
    for column in columns:
        benchmark, figure = _parts(column.key)
        if benchmark in names:
            theirs[column.key] = f"{names[benchmark]}_{figure}"
    rows = []
    for label, values in block.items() if set(theirs.values()) & set(block["columns"]) else ():
        if label != "columns":
            numbers = dict(zip(block["columns"], values, strict=True))
            cells = {column.key: published_cell(numbers.get(theirs.get(column.key))) for column in columns}
            rows.append(Row(label, "paper", cells, "published"))
    return rows
