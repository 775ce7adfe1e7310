"""The component ablation: the gain of each part of the recipe over the baseline (the paper's Table 4)."""

from __future__ import annotations

from dataclasses import replace

from filip.report.table import Table
from filip.report.tables.tables_1_to_3 import Inputs, published_key, published_rows

VARIANTS = "our own variants"


def build(inputs: Inputs) -> Table:
    """Build R@1 and R@5 of the first retrieval benchmark both ways, as in the paper, then each task and their mean."""
    recalls = [
        figure
        for figure in inputs.figures("retrieval", benchmarks=inputs.study.benchmarks("retrieval")[:1])
        if figure.key.endswith(("_r1", "_r5"))
    ]
    # in this table an accuracy's key has an ending like a recall's, and all accuracies are below "Zero-shot"
    tasks = [replace(f, column=replace(f.column, key="top1")) for f in inputs.figures("zero_shot")]
    columns = [replace(inputs.column(figure), headline=True) for figure in recalls]
    columns += [replace(inputs.column(figure, "Zero-shot"), headline=True) for figure in tasks]
    if len(tasks) > 1:
        columns.append(inputs.average_column("zero_shot", "average", "Zero-shot"))
    rows = []
    for run in inputs.study.rows("component_ablation"):
        section = VARIANTS if "variant_of" in inputs.study.runs.get(run, {}) else ""
        cells = {figure.key: inputs.cell(run, figure) for figure in (*recalls, *tasks)}
        rows.append(inputs.row(run, {**cells, "average": inputs.average_cell(run)}, section))
    notes = ["Each middle row adds one component to the baseline; the last row has all of them."]
    keys = {figure.key: published_key(inputs, figure) for figure in (*recalls, *tasks)}
    published = published_rows(inputs, "component_ablation", keys, "published")
    if not published:
        notes.insert(1, "The paper's table is over MSCOCO and ImageNet, so its rows are not shown.")
    rows += published
    return Table("component_ablation", "Component ablation (%)", columns, rows, notes)
