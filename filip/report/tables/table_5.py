"""The efficiency ablation: the loss's time and memory, with the paper's own measurements."""

from __future__ import annotations

from typing import Any

from filip.report.table import Cell, Column, Row, Table, published_cell, text_cell
from filip.report.tables.tables_1_to_3 import Inputs

# facts of a row's training, from its config
FACTS = ("interaction", "embed_dim", "precision", "token_keep_ratio")
INTERACTIONS = {"pooled": "pooled", "token_wise": "token-wise"}
NOT_APPLICABLE = "does not apply"


def build(inputs: Inputs) -> Table:
    """Build one row per entry of the study's ``efficiency``, then the published rows."""
    tasks = inputs.study.benchmarks("zero_shot")
    theirs = [name for task in tasks if (name := inputs.cards[task].published) is not None]
    measure = "imagenet_top1" if len(tasks) == 1 and theirs == ["imagenet"] else "accuracy"
    title = f"{inputs.title(tasks[0])} top-1" if len(tasks) == 1 else f"mean of {len(tasks)} tasks"
    columns = [
        Column("interaction", "interaction", unit="text"),
        Column("embed_dim", "dim", unit="number"),
        Column("precision", "precision", unit="text"),
        Column("token_keep_ratio", "tokens, %"),
        Column("seconds_per_iteration", "s / iteration", "Time", "seconds"),
        Column("seconds_quartiles", "quartiles", "Time", "text"),
        Column("time_ratio", "x first row", "Time", "ratio"),
        Column("memory_mb", "MB / rank", "Memory", "mb"),
        Column("memory_ratio", "x first row", "Memory", "ratio"),
        Column(measure, title, "Zero-shot accuracy"),
    ]
    rows = [_row(inputs, name, measure) for name in inputs.study.rows("efficiency_ablation")]
    add_ratios(rows)
    rows += _published(inputs, measure)
    notes = [
        "Time: the median step of training (forward, loss, backward, update), with its quartiles; memory: what a step "
        "needs beyond weights and optimiser states; both the largest over ranks. Steps of all rows are interleaved.",
        *_geometry(inputs),
        "Precision is that in which tokens or vectors are sent and multiplied; the towers of all rows have one "
        "precision, that of the training.",
        "Ratios are to the first row of the same block, so that different machines compare.",
        "Accuracy is that of the fully trained run with the same settings, where there is one.",
    ]
    return Table("efficiency_ablation", "Efficiency of the loss", columns, rows, notes)


def _geometry(inputs: Inputs) -> list[str]:
    """Return a sentence on how many pairs met how many texts."""
    for name in inputs.study.rows("efficiency_ablation"):
        if (timing := inputs.results.efficiency(name)) and "gathered_texts" in timing:
            return [
                f"Each of {timing['world_size']} ranks scored {timing['pairs_per_rank']:,} pairs against "
                f"{timing['gathered_texts']:,} texts."
            ]
    return []


def _row(inputs: Inputs, name: str, measure: str) -> Row:
    timing = inputs.results.efficiency(name)
    cells = step_cells(inputs, name)
    if timing is None:
        why = inputs.results.why("efficiency", f"{name}.json")
        cells |= {key: Cell(reason=why) for key in (*FACTS, "seconds_quartiles")}
    else:
        cells |= _facts(timing["config"])
        low, high = timing.get("seconds_quartiles", (None, None))
        cells["seconds_quartiles"] = text_cell(f"{low:.3g} to {high:.3g}" if low is not None else None)
    trained = inputs.study.efficiency[name].get("accuracy_of")
    cells[measure] = inputs.average_cell(trained) if trained else Cell(reason="not trained to the end")
    commit = (timing or {}).get("commit")
    label = inputs.study.label(name)
    return Row(label, "ours", cells, "measured here", name, inputs.results.run_id(name), commit)


def step_cells(inputs: Inputs, name: str) -> dict[str, Cell]:
    """Return time and memory of a step of an efficiency row."""
    timing = inputs.results.efficiency(name)
    if timing is None:
        why = inputs.results.why("efficiency", f"{name}.json")
        return {key: Cell(reason=why) for key in ("seconds_per_iteration", "memory_mb")}
    measured = {"seconds_per_iteration": "seconds_per_iteration", "memory_mb": "peak_memory_mb"}
    return {
        key: Cell(reason="not measured") if timing.get(source) is None else Cell(timing[source])
        for key, source in measured.items()
    }


def _facts(config: dict[str, Any]) -> dict[str, Cell]:
    """Return the settings of a training, from the config that the training itself recorded."""
    model = config["model"]
    pooled = model["interaction"] == "pooled"  # its vectors are sent in float32
    sent = config["precision"] if config["transport_dtype"] == "auto" else config["transport_dtype"]
    return {
        "interaction": text_cell(INTERACTIONS[model["interaction"]]),
        "embed_dim": Cell(model["embed_dim"]),
        "precision": text_cell("fp32" if pooled else sent),
        "token_keep_ratio": Cell(reason=NOT_APPLICABLE) if pooled else Cell(config["token_keep_ratio"]),
    }


def _published(inputs: Inputs, measure: str) -> list[Row]:
    block = inputs.published_block("efficiency_ablation")
    rows = []
    for label, values in block.items():
        if label == "columns":
            continue
        numbers = dict(zip(block["columns"], values, strict=True))
        cells = {"precision": text_cell(numbers["precision"])}
        cells["interaction"] = text_cell(INTERACTIONS["pooled" if label == "orig" else "token_wise"])
        for key in ("embed_dim", "token_keep_ratio", "seconds_per_iteration", "memory_mb"):
            cells[key] = Cell(numbers[key]) if numbers[key] is not None else Cell(reason=NOT_APPLICABLE)
        cells[measure] = (
            published_cell(numbers["imagenet_top1"])
            if measure == "imagenet_top1"
            else Cell(reason="published on ImageNet, which this study does not evaluate")
        )
        rows.append(Row(label, "paper", cells, "published: ViT-B/32, 8 V100, 512 per GPU"))
    add_ratios(rows)
    return rows


def add_ratios(rows: list[Row]) -> None:
    """Fill time and memory relative to the first row."""
    for ratio, key in (("time_ratio", "seconds_per_iteration"), ("memory_ratio", "memory_mb")):
        base = rows[0].cells[key].value if rows else None
        for row in rows:
            value = row.cells[key].value
            if isinstance(value, int | float) and isinstance(base, int | float) and base:
                row.cells[ratio] = Cell(value / base)
            else:
                row.cells[ratio] = Cell(reason=row.cells[key].reason or "the first row has no value")
