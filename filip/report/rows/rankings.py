"""Retrieval by each similarity of a token-wise model, and with a part of a text's tokens."""

from __future__ import annotations

from typing import Any

from filip.report.rows.cells import DIRECTIONS, Inputs
from filip.report.table import Cell, Column, Table, combine

RANKINGS = {"image": "by s^I", "text": "by s^T", "mean": "by their mean"}
TOKENS = {"all": "", "without_ends": ", without [BOS] and [EOS]", "content": ", words that name something"}


def build(inputs: Inputs) -> Table:
    """Build R@1 by s^I, s^T and their mean: a row for a run, and one for each choice of tokens that was evaluated.

    Of the benchmarks for which tokens were compared, where there are any.
    """
    benchmarks = [
        name
        for name in inputs.study.benchmarks("retrieval")
        if any(_found(inputs, run, name).get("text_tokens") for run in inputs.study.rows("rankings"))
    ] or inputs.study.benchmarks("retrieval")
    keys = [(name, way, by) for name in benchmarks for way in DIRECTIONS for by in RANKINGS]
    columns = [
        Column(f"{name}_{way}_{by}", RANKINGS[by], f"{inputs.title(name)}, {DIRECTIONS[way]}") for name, way, by in keys
    ]
    rows = []
    for run in inputs.study.rows("rankings"):
        for tokens, suffix in TOKENS.items():
            found = {key: _cell(inputs, run, key, tokens) for key in keys}
            if tokens == "all" or any(cell.value is not None for cell in found.values()):
                cells = {f"{name}_{way}_{by}": cell for (name, way, by), cell in found.items()}
                rows.append(inputs.row(run, cells, suffix=suffix))
    return Table("rankings", "Retrieval by each similarity (R@1, %)", columns, rows, NOTES)


NOTES = [
    "s^I is the mean over patches of the best word, s^T the mean over words of the best patch; the paper leaves open "
    "which of them ranks. The table of retrieval ranks texts by s^I and images by s^T.",
    "A pooled model has one similarity, and no tokens to leave out.",
]


def _cell(inputs: Inputs, run: str, key: tuple[str, str, str], tokens: str) -> Cell:
    return combine([_of_member(inputs, member, key, tokens) for member in inputs.study.replicas(run)])


def _of_member(inputs: Inputs, run: str, key: tuple[str, str, str], tokens: str) -> Cell:
    name, way, by = key
    found = _found(inputs, run, name)
    if not found:
        return Cell(reason=inputs.why_empty(run, "retrieval", name))
    tables = found.get("by") if tokens == "all" else found.get("text_tokens", {}).get(tokens)
    if tables is None and tokens != "all":
        return Cell(reason=f"not evaluated: retrieval.compare_text_tokens=[{name}]")
    recall: dict[str, Any] = (tables or {}).get(by, found)  # a pooled model's similarities are the same
    return Cell(recall[way]["r1"], found["chance"][way]["r1"], found["images"], recall["ci95"][way]["r1"])


def _found(inputs: Inputs, run: str, benchmark: str) -> dict[str, Any]:
    """Return the result of a training on a benchmark; empty if there is none."""
    result = inputs.results.evaluation(run, "retrieval") or {}
    found: dict[str, Any] = result.get("benchmarks", {}).get(benchmark, {})
    return found
