"""The prompts of each benchmark: how many there are, and what they are made of."""

from __future__ import annotations

from typing import Any

from filip.errors import UserError
from filip.eval.families import prompt_file
from filip.report.rows.cells import Inputs
from filip.report.table import Cell, Column, Row, Table, text_cell

PARTS = {"prefix": "before the class", "description": "description behind it", "suffix": "sentence at the end"}


def build(inputs: Inputs) -> Table:
    """Build one row per zero-shot benchmark with an entry in the study's prompt file, two per retrieval benchmark."""
    place = inputs.study.prompts
    try:
        content = prompt_file(place)
    except UserError:  # one prompt on the command line, or a file that is not here
        content = {}
    columns = [Column("count", "prompts", unit="text")]
    columns += [Column(part, title, unit="text") for part, title in PARTS.items()]
    rows = [
        Row(inputs.title(name), "ours", _ensemble(content.get(inputs.cards[name].prompts or "")), "zero-shot")
        for name in inputs.study.benchmarks("zero_shot")
    ]
    for name in inputs.study.benchmarks("retrieval"):
        entry = content.get("retrieval", {}).get(inputs.cards[name].prompts or "", {})
        for way, meaning in (("image_to_text", "image → text"), ("text_to_image", "text → image")):
            if way in entry:
                lists = {part: [text] for part, text in entry[way].items()}
                label = f"{inputs.title(name)}, {meaning}"
                rows.append(Row(label, "ours", _ensemble({**lists, "count": 1}), "retrieval"))
    notes = [
        f"From {place}; in eval/prompts.yaml those of the paper's benchmarks are the paper's. An ensemble is every "
        "combination of its parts, a dash is an empty part."
    ]
    return Table("prompts", "Prompt ensembles", columns, rows, notes)


def _ensemble(entry: dict[str, Any] | None) -> dict[str, Cell]:
    if entry is None:
        return {key: Cell(reason="no entry in the prompt file") for key in ("count", *PARTS)}
    if "templates" in entry:
        shown = " · ".join(template.replace("{c}", "…") for template in entry["templates"])
        whole = {"prefix": text_cell(shown), "description": text_cell(None), "suffix": text_cell(None)}
        return {"count": text_cell(entry["count"]), **whole}
    parts = {part: " · ".join(text or "–" for text in entry.get(part, [""])) for part in PARTS}
    return {"count": text_cell(entry["count"]), **{part: text_cell(text) for part, text in parts.items()}}
