"""Keep the outcome of each image or caption of a benchmark next to the result file, so that runs compare in pairs.

A result file ``cifar10.json`` has its outcomes in ``cifar10.npz``: for each group of queries (a benchmark, or one
direction of it) the arrays ``<group>/key``, ``<group>/cluster`` and ``<group>/<measure>``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from filip.common.errors import UserError
from filip.common.files import replacing

if TYPE_CHECKING:
    from torch import Tensor  # the report reads outcomes without it

_KEY, _CLUSTER = "key", "cluster"


@dataclass(frozen=True)
class Outcomes:
    """The outcomes of n queries.

    key: [n] strings, the same query in every run. values: {measure: [n]}, each in 0..1 (a hit; a fraction where
    scores tie). cluster: [n] strings; queries with an equal one are not independent, such as captions of an image.
    """

    key: np.ndarray
    values: dict[str, np.ndarray]
    cluster: np.ndarray

    @classmethod
    def of(
        cls,
        key: Sequence[str],
        values: Mapping[str, np.ndarray | Tensor | Sequence[float]],
        cluster: Sequence[str] | None = None,
    ) -> Outcomes:
        """Make outcomes from lists; without ``cluster`` every query is alone."""
        measures = {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}
        return cls(np.asarray(key, str), measures, np.asarray(key if cluster is None else cluster, str))


Record = dict[str, Outcomes]  # by group, e.g. "cifar10" or "flickr30k.i2t"


def outcomes_file(result: str | Path) -> Path:
    """Return where the outcomes of a result file are."""
    return Path(result).with_suffix(".npz")


def write_outcomes(result: str | Path, record: Record) -> None:
    """Write the outcomes of the result file ``result``, atomically."""
    arrays: dict[str, np.ndarray] = {}
    for group, outcomes in record.items():
        arrays |= {f"{group}/{_KEY}": outcomes.key, f"{group}/{_CLUSTER}": outcomes.cluster}
        arrays |= {f"{group}/{measure}": values for measure, values in outcomes.values.items()}
    with replacing(outcomes_file(result), shared=True) as part, open(part, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_outcomes(result: str | Path) -> Record:
    """Read the outcomes of a result file. Raises UserError if there are none."""
    path = outcomes_file(result)
    if not path.is_file():
        raise UserError(f"no outcomes at {path}; evaluate the model again to get them")
    with np.load(path, allow_pickle=False) as arrays:
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name in arrays.files:
            group, _, field = name.rpartition("/")
            groups.setdefault(group, {})[field] = arrays[name]
    return {
        group: Outcomes(
            fields[_KEY],
            {name: values for name, values in fields.items() if name not in (_KEY, _CLUSTER)},
            fields[_CLUSTER],
        )
        for group, fields in groups.items()
    }
