"""The tables that a study can have, and the evaluations that each needs.

The study's schema, the workflow's evaluations and the report take names and protocols from here. A protocol of another
package has a table of its name; any other is a module in ``filip/report/tables/`` and a line in :data:`TABLES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points


@dataclass(frozen=True)
class TableKind:
    """The way in which a table is made, and what has to be evaluated for it.

    protocols: those in filip/eval/protocols that the table's runs go through.
    paper: the tables of the paper that it reproduces; "" where the paper numbers none.
    with_peers: other people's models (the study's ``peers``) follow the runs.
    rows: what they are: "listed" by the study under ``tables.<name>``; the same, or without that line all pre-training
    runs if the protocol is "evaluated"; its "efficiency", the pre-training "runs", or all that is "trained".
    """

    protocols: tuple[str, ...]
    paper: str = ""
    with_peers: bool = False
    rows: str = "listed"


TABLES: dict[str, TableKind] = {
    "zero_shot": TableKind(("zero_shot",), "table 1", with_peers=True),
    "linear_probe": TableKind(("linear_probe",)),
    "retrieval": TableKind(("retrieval",), "table 2 and table 3", with_peers=True),
    "rankings": TableKind(("retrieval",), with_peers=True),
    "scene_pointing": TableKind(("scene_pointing",)),
    "selection": TableKind(("selection",), with_peers=True),
    "segmentation": TableKind(("segmentation",), with_peers=True),
    "component_ablation": TableKind(("zero_shot", "retrieval"), "table 4"),
    "efficiency_ablation": TableKind(("zero_shot",), "table 5", rows="efficiency"),
    "model_sizes": TableKind((), rows="runs"),
    "training_settings": TableKind((), rows="trained"),
}
offered = {entry.name for entry in entry_points(group="filip.protocols")}  # by other packages; none is loaded
TABLES |= {name: TableKind((name,), rows="evaluated") for name in sorted(offered) if name not in TABLES}
PROTOCOLS = tuple(dict.fromkeys(protocol for kind in TABLES.values() for protocol in kind.protocols))
