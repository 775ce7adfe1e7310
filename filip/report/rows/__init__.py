"""The tables of the report: each is one module of this folder, registered in ``TABLES``.

To add a table, write a module with ``build(inputs) -> Table`` and add its line to ``TABLES``. The study's schema, the
workflow's evaluations and the report take names and protocols from here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from filip.report.differences import RESAMPLES
from filip.report.results import Results
from filip.report.rows import (
    alignment,
    component_ablation,
    efficiency,
    linear_probe,
    prompts,
    recipes,
    retrieval,
    scene_pointing,
    segmentation,
    selection,
    settings,
    zero_shot,
)
from filip.report.rows.cells import Inputs, Study
from filip.report.rows.notes import intervals
from filip.report.rows.pairs import compare_rows
from filip.report.table import Table


@dataclass(frozen=True)
class TableKind:
    """How a table is made, and what has to be evaluated for it.

    build: from the inputs to the table, interval notes excluded.
    protocols: commands of filip.eval that the table's runs go through.
    with_peers: other people's models (the study's ``peers``) follow the runs.
    rows: what they are: "listed" by the study under ``tables.<name>``, its "efficiency", the pre-training "runs", all
    that is "trained", or the "benchmarks" with prompts.
    """

    build: Callable[[Inputs], Table]
    protocols: tuple[str, ...]
    with_peers: bool = False
    rows: str = "listed"


TABLES: dict[str, TableKind] = {
    "zero_shot": TableKind(zero_shot.build, ("zero_shot",), with_peers=True),
    "linear_probe": TableKind(linear_probe.build, ("linear_probe",)),
    "retrieval": TableKind(retrieval.build, ("retrieval",), with_peers=True),
    "scene_pointing": TableKind(scene_pointing.build, ("scene_pointing",)),
    "selection": TableKind(selection.build, ("selection",), with_peers=True),
    "segmentation": TableKind(segmentation.build, ("segmentation",), with_peers=True),
    "component_ablation": TableKind(component_ablation.build, ("zero_shot", "retrieval")),
    "recipes": TableKind(
        recipes.build, ("retrieval", "selection", "scene_pointing", "segmentation", "zero_shot")
    ),
    "alignment": TableKind(alignment.build, ("alignment",)),
    "efficiency_ablation": TableKind(efficiency.build, ("zero_shot",), rows="efficiency"),
    "model_sizes": TableKind(settings.build_models, (), rows="runs"),
    "training_settings": TableKind(settings.build_trainings, (), rows="trained"),
    "prompts": TableKind(prompts.build, (), rows="benchmarks"),
}
PROTOCOLS = tuple(dict.fromkeys(protocol for kind in TABLES.values() for protocol in kind.protocols))


def build_tables(
    study: Study, results: Results, published: dict[str, Any], resamples: int = RESAMPLES
) -> dict[str, Table]:
    """All tables that the study has rows for, by name.

    published: the content of ``eval/published.yaml``. resamples: of the differences between rows. Raises UserError for
    a benchmark without a card.
    """
    inputs = Inputs.of(study, results, published)
    tables = {name: kind.build(inputs) for name, kind in TABLES.items() if study.rows(name)}
    for name, table in tables.items():
        compare_rows(table, inputs, TABLES[name].protocols, resamples)
        table.notes += intervals(table)
    return tables
