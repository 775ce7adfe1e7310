"""What a study has found, from its tables: headline figures, the verdict in words, and what the forest plot shows.

Rows that are compared are the first and the last of ours in the first section of a table: the baseline and the whole
recipe. A difference holds or does not as the table says (:mod:`filip.report.rows.pairs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from filip.report.formats.text import heading
from filip.report.rows.component_ablation import VARIANTS
from filip.report.table import Cell, Column, Less, Row, Table

Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Area:
    """What a study may measure: its name in print, and in which column of which table its headline figure stands."""

    title: str
    short: str
    table: str
    chosen: Callable[[Column], bool]


def _any(column: Column) -> bool:
    return True


def _first_rank(column: Column) -> bool:
    return column.key.endswith("_r1")


def _mean(column: Column) -> bool:
    return column.key.endswith("_mean")


def _all(column: Column) -> bool:
    return column.key.endswith("_all")


def _average(column: Column) -> bool:
    return column.key == "average"


# In the order of the tiles; a later area of the same title is for studies that lack the earlier one.
AREAS = (
    Area("Retrieval", "retrieval", "retrieval", _first_rank),
    Area("Retrieval", "retrieval", "component_ablation", _first_rank),
    Area("Retrieval", "retrieval", "recipes", _first_rank),
    Area("Selection", "selection", "selection", _mean),
    Area("Selection", "selection", "recipes", _mean),
    Area("Pointing", "pointing", "scene_pointing", _any),
    Area("Pointing", "pointing", "recipes", _all),
    Area("Pointing", "pointing", "alignment", _any),
    Area("Zero-shot", "zero-shot classification", "zero_shot", _average),
    Area("Zero-shot", "zero-shot classification", "component_ablation", _average),
    Area("Zero-shot", "zero-shot classification", "recipes", _average),
    Area("Zero-shot", "zero-shot classification", "zero_shot", _any),
    Area("Linear probe", "the linear probe", "linear_probe", _average),
    Area("Linear probe", "the linear probe", "linear_probe", _any),
)


@dataclass(frozen=True)
class Finding:
    """The headline figure of an area. base: None where a table has one row of ours only."""

    area: Area
    column: Column
    ours: Row
    base: Row | None

    @property
    def cell(self) -> Cell:
        return self.ours.cells[self.column.key]

    @property
    def base_cell(self) -> Cell | None:
        return self.base.cells.get(self.column.key) if self.base else None

    @property
    def less(self) -> Less | None:
        return self.cell.less if self.base else None


def compared(table: Table) -> tuple[Row | None, Row] | None:
    """The baseline and the last of our rows in the first section; (None, row) if there is one; None if none."""
    rows = [row for row in table.rows if row.kind == "ours" and row.section != VARIANTS]
    rows = [row for row in rows if row.section == rows[0].section]
    if not rows:
        return None
    return (rows[0] if len(rows) > 1 else None), rows[-1]


def findings(tables: Tables) -> list[Finding]:
    """The headline figure of each area that the study has measured, in the order of AREAS."""
    found: dict[str, Finding] = {}
    for area in AREAS:
        pair = compared(tables[area.table]) if area.table in tables else None
        if pair is None or area.title in found:
            continue
        base, ours = pair
        for column in tables[area.table].columns:
            value = ours.cells.get(column.key, Cell()).value
            if area.chosen(column) and isinstance(value, int | float):
                found[area.title] = Finding(area, column, ours, base)
                break
    return list(found.values())


# ---- the verdict ---------------------------------------------------------------------------------------


def verdict(found: list[Finding], cost_ratio: float | None = None) -> str:
    """The study in a sentence or three: where the last run is better than the first by a difference that holds, where
    worse, where nothing can be said, and what a step costs."""
    if not found:
        return "Nothing has been evaluated yet."
    pairs = dict.fromkeys((f.ours.label, f.base.label if f.base else None) for f in found)
    sentences = []
    for ours, base in pairs:
        of_pair = [f for f in found if (f.ours.label, f.base.label if f.base else None) == (ours, base)]
        sentences += _against(ours, base, of_pair) if base is not None else _alone(ours, of_pair)
    if cost_ratio is not None:
        sentences.append(_cost(cost_ratio))
    return " ".join(sentences)


def _against(ours: str, base: str, found: list[Finding]) -> list[str]:
    better = [f for f in found if f.less and f.less.holds and f.less.effect > 0]
    worse = [f for f in found if f.less and f.less.holds and f.less.effect < 0]
    neither = [f for f in found if f.less and not f.less.holds]
    unknown = [f for f in found if not f.less]
    sentences = []
    if better:
        sentences.append(f"{ours} is better than {base} at {_listed(better)}.")
    if worse:
        subject = (
            f"It is worse at {_listed(worse)}"
            if better
            else f"{ours} is worse than {base} at {_listed(worse)}"
        )
        sentences.append(f"{subject}.")
    if neither:
        between = "" if better or worse else f" between {ours} and {base}"
        sentences.append(f"At {_listed(neither)} no difference{between} holds.")
    if unknown:
        sentences.append(
            f"At {_listed(unknown)} {ours} and {base} cannot be compared: they lack outcomes per image in common."
        )
    return sentences


def _alone(ours: str, found: list[Finding]) -> list[str]:
    parts = []
    for f in found:
        chance = "" if f.cell.chance is None else f" (chance {100 * f.cell.chance:.2g} %)"
        parts.append(f"{100 * float(f.cell.value or 0):.1f} % at {f.area.short}{chance}")
    return [f"{ours} reaches {_and(parts)}; there is no other run to compare it with."]


def _cost(ratio: float) -> str:
    if 0.97 <= ratio <= 1.03:
        return "A training step takes as long."
    return f"A training step takes {ratio:.2f} times as long."


def _listed(found: list[Finding]) -> str:
    return _and([f.area.short + (f" ({points(f.less)})" if f.less else "") for f in found])


def points(less: Less) -> str:
    """A difference in percentage points, with its sign."""
    return f"{100 * less.effect:+.1f}".replace("-", "−")


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


# ---- what the forest plot shows ------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """One line of the forest plot: in ``group``, ``row`` less ``base`` in ``label``."""

    group: str
    label: str
    row: Row
    base: Row
    less: Less


# Which columns of a table stand in the plot, under which heading.
SHOWN: tuple[tuple[str, str, Callable[[Column], bool]], ...] = (
    ("retrieval", "Retrieval, R@1", _first_rank),
    ("selection", "Selection", _mean),
    ("scene_pointing", "Pointing in scenes", _any),
    ("alignment", "Pointing in single images", _any),
    ("zero_shot", "Zero-shot classification", _average),
    ("linear_probe", "Linear probe", _average),
    ("component_ablation", "Component ablation", _any),
    ("recipes", "Recipes, R@1", _first_rank),
)
ALL_ROWS = ("component_ablation", "recipes")  # whose rows are all compared with the first, not the last alone


def comparisons(tables: Tables) -> list[Compared]:
    """The paired differences of the study's headline columns; in the tables of ALL_ROWS those of every row."""
    found: list[Compared] = []
    for name, group, chosen in SHOWN:
        pair = compared(tables[name]) if name in tables else None
        if pair is None or pair[0] is None:
            continue
        base, ours = pair
        table = tables[name]
        rows = [r for r in table.rows if r.kind == "ours"] if name in ALL_ROWS else [ours]
        columns = [c for c in table.columns if chosen(c)] or table.columns
        for column in columns:
            for row in rows:
                less = row.cells.get(column.key, Cell()).less
                if less is not None and base is not None:
                    label = _label(name, column) + (f": {row.label}" if len(rows) > 1 else "")
                    found.append(Compared(group, label, row, base, less))
    return found


def _label(table: str, column: Column) -> str:
    if table in ("retrieval", "selection", "recipes"):
        return column.group
    if column.key == "average":
        return "mean of all tasks"
    return column.title if table in ("zero_shot", "linear_probe") else heading(column)


def tally(found: list[Compared]) -> tuple[int, int, int]:
    """How many comparisons hold in favour, hold against, and do not hold."""
    holding = [c.less for c in found if c.less.holds]
    better = sum(less.effect > 0 for less in holding)
    return better, len(holding) - better, len(found) - len(holding)
