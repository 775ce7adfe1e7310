"""The tables that a study can have, and the evaluations that each needs.

A new table is a module in ``filip/report/rows/`` and a line in :data:`TABLES`. The study's schema, the workflow's
evaluations and the report take names and protocols from here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TableKind:
    """The way in which a table is made, and what has to be evaluated for it.

    build: ``module:function`` in ``filip/report/rows/`` that makes the table from its inputs.
    protocols: those in filip/eval/protocols that the table's runs go through.
    with_peers: other people's models (the study's ``peers``) follow the runs.
    rows: what they are: "listed" by the study under ``tables.<name>``, its "efficiency", the pre-training "runs", all
    that is "trained", or the "benchmarks" with prompts.
    """

    build: str
    protocols: tuple[str, ...]
    with_peers: bool = False
    rows: str = "listed"


TABLES: dict[str, TableKind] = {
    "zero_shot": TableKind("zero_shot:build", ("zero_shot",), with_peers=True),
    "linear_probe": TableKind("linear_probe:build", ("linear_probe",)),
    "retrieval": TableKind("retrieval:build", ("retrieval",), with_peers=True),
    "rankings": TableKind("rankings:build", ("retrieval",), with_peers=True),
    "scene_pointing": TableKind("pointing:build_scenes", ("scene_pointing",)),
    "selection": TableKind("selection:build", ("selection",), with_peers=True),
    "segmentation": TableKind("segmentation:build", ("segmentation",), with_peers=True),
    "component_ablation": TableKind("component_ablation:build", ("zero_shot", "retrieval")),
    "recipes": TableKind("recipes:build", ("retrieval", "selection", "scene_pointing", "segmentation", "zero_shot")),
    "alignment": TableKind("pointing:build_labels", ("alignment",)),
    "efficiency_ablation": TableKind("efficiency:build", ("zero_shot",), rows="efficiency"),
    "model_sizes": TableKind("settings:build_models", (), rows="runs"),
    "training_settings": TableKind("settings:build_trainings", (), rows="trained"),
    "prompts": TableKind("prompts:build", (), rows="benchmarks"),
}
PROTOCOLS = tuple(dict.fromkeys(protocol for kind in TABLES.values() for protocol in kind.protocols))
