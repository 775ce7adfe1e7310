"""The tables of the report. ``python -m filip.report.tables`` writes them as retrieval.{md,csv,tex,html} and so on.

tables_1_to_3.py builds the paper's Table 1 (zero_shot), Tables 2 and 3 (retrieval) and those of other protocols.
table_4.py builds the ablation of components, table_5.py that of efficiency. :data:`filip.study.TABLES` lists all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from filip.report.differences import RESAMPLES
from filip.report.results import Results
from filip.report.table import Table
from filip.report.tables import settings, table_4, table_5, tables_1_to_3
from filip.report.tables.compared import compare_rows
from filip.report.tables.tables_1_to_3 import Inputs
from filip.study import TABLES, Study

# The tables that are no protocol's.
BUILDERS: dict[str, Callable[[Inputs], Table]] = {
    "component_ablation": table_4.build,
    "efficiency_ablation": table_5.build,
    "model_sizes": settings.build_models,
    "training_settings": settings.build_trainings,
}


def build_tables(
    study: Study, results: Results, published: dict[str, Any], resamples: int = RESAMPLES
) -> dict[str, Table]:
    """Build all tables that the study has rows for, by name.

    published: the content of ``eval/paper_tables.yaml``. resamples: how many for the differences between rows. Raises
    UserError for a benchmark without a card.
    """
    inputs = Inputs.of(study, results, published)
    tables = {
        name: BUILDERS[name](inputs) if name in BUILDERS else tables_1_to_3.build(inputs, name, kind.protocols[0])
        for name, kind in TABLES.items()
        if study.rows(name)
    }
    for name, table in tables.items():
        compare_rows(table, inputs, TABLES[name].protocols, resamples)
        table.notes += table.interval_notes()
    return tables
