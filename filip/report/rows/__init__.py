"""The tables of the report: each is one module of this folder, with ``build(inputs) -> Table``.

:data:`filip.study.TABLES` lists them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from filip.report.differences import RESAMPLES
from filip.report.results import Results
from filip.report.rows.cells import Inputs
from filip.report.rows.notes import intervals
from filip.report.rows.pairs import compare_rows
from filip.report.table import Table
from filip.study import TABLES, Study, TableKind


def build_tables(
    study: Study, results: Results, published: dict[str, Any], resamples: int = RESAMPLES
) -> dict[str, Table]:
    """Build all tables that the study has rows for, by name.

    published: the content of ``eval/published.yaml``. resamples: how many for the differences between rows. Raises
    UserError for a benchmark without a card.
    """
    inputs = Inputs.of(study, results, published)
    tables = {name: _builder(kind)(inputs) for name, kind in TABLES.items() if study.rows(name)}
    for name, table in tables.items():
        compare_rows(table, inputs, TABLES[name].protocols, resamples)
        table.notes += intervals(table)
    return tables


def _builder(kind: TableKind) -> Callable[[Inputs], Table]:
    module, _, function = kind.build.partition(":")
    found: Callable[[Inputs], Table] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    return found
