"""Linear probes of the image encoders."""

from __future__ import annotations

from filip.report.rows.cells import Inputs, task_table
from filip.report.table import Table


def build(inputs: Inputs) -> Table:
    columns, rows = task_table(inputs, "linear_probe")
    notes = ["Logistic regression on the mean patch token of the frozen image encoder."]
    evaluations = [inputs.results.evaluation(run, "linear_probe") or {} for run in inputs.study.rows("linear_probe")]
    for task in inputs.study.benchmarks("linear_probe"):
        found = [entry["benchmarks"][task] for entry in evaluations if task in entry.get("benchmarks", {})]
        splits = {numbers["protocol"] for numbers in found}
        notes += [f"{inputs.title(task)}: {split}." for split in sorted(splits)]
    return Table("linear_probe", "Linear probe (accuracy, %)", columns, rows, notes)
