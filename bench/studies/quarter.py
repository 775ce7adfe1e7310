"""Keep a half or a quarter of the tokens where models learn: a table of docs/token_wise.md.

    python -m bench.studies.quarter                # what is missing: a training a cell, row and seed
    python -m bench.studies.quarter page=true      # write the table from what is there

Every training is that of the speedrun (bench/speedrun.py) with the paper's maximum, on as many pairs in batches of
another size or with another optimiser (CELLS). The rate of a cell is the best one for all tokens, on the seeds and
scenes of the search of bench/studies/onset.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.readme import put_on_page
from bench.speedrun import Place
from bench.studies import onset_page, variants
from bench.studies.onset_page import SEARCH, Curves, mean_recall, with_interval
from filip.command import option, run_command

DATA = Path("records/quarter")
MARKS = ("<!-- quarter:begin -->", "<!-- quarter:end -->")
ALL = "all tokens"
QUARTER = "token_keep_ratio=0.25"
HALF = "token_keep_ratio=0.5"
ROWS: dict[str, list[str]] = {
    ALL: [],
    "a half": [HALF],
    "a half, by contrast": [HALF, "token_score=contrast"],
    "a quarter": [QUARTER],
    "a quarter, by contrast": [QUARTER, "token_score=contrast"],
}
LAMB = ["optimizer.name=lamb", "optimizer.weight_decay=3e-3", "optimizer.temperature_lr_factor=1"]


@dataclass(frozen=True)
class Cell:
    """A size of batch and an optimiser, the steps of its trainings, and the rates that are tried."""

    batch: int
    steps: int
    rates: tuple[str, ...] = ("2e-3", "4e-3", "8e-3")
    settings: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        sizes = [f"global_batch={self.batch}", f"optimizer.warmup_steps={self.steps // 3}"]
        return ["token_maximum=hard", *sizes, *self.settings]


CELLS = {
    "AdamW, 128": Cell(128, 400),
    "LAMB, 128": Cell(128, 400, ("8e-3", "1.6e-2", "3.2e-2", "6.4e-2"), tuple(LAMB)),
    "AdamW, 32": Cell(32, 1600),
    "LAMB, 32": Cell(32, 1600, ("8e-3", "1.6e-2", "3.2e-2", "6.4e-2"), tuple(LAMB)),
    "AdamW, 512": Cell(512, 100),
    "LAMB, 512": Cell(512, 100, ("8e-3", "1.6e-2", "3.2e-2", "6.4e-2"), tuple(LAMB)),
}


@dataclass
class Quarter(Place):
    """The trainings to add."""

    only: list[str] = option([], f"cells, of {'; '.join(CELLS)}; empty = all")
    seeds: list[int] = option([0, 1, 2, 3, 4], "seeds that are reported, one training each")
    page: bool = option(False, "write the table, and train nothing")


def main(study: Quarter) -> None:
    """Train what is missing: first every rate of a cell on the seeds of the search, then all rows at the best one."""
    if study.page:
        write_page()
        return
    for name in study.only or CELLS:
        for seed in SEARCH:
            for rate in CELLS[name].rates:
                keep(study, name, ALL, rate, seed)
        for seed in study.seeds:
            for row in ROWS:
                keep(study, name, row, variants.best_rate(DATA, _label(name, ALL), CELLS[name].rates), seed)


def keep(study: Quarter, name: str, row: str, rate: str, seed: int) -> None:
    cell = CELLS[name]
    settings = [*cell.overrides(), *ROWS[row]]
    variants.keep(study, DATA, _label(name, row), settings, rate, seed, cell.steps)


def _label(cell: str, row: str) -> str:
    return f"{cell}: {row}"


def write_page() -> None:
    """Write the table between the marks of the page."""
    put_on_page(onset_page.PAGE, table({one.row: one for one in onset_page.read(DATA)}), MARKS)


def table(found: dict[str, Curves]) -> str:
    """Return the Markdown table: R@1 of each row in each cell, and what it is above all tokens, paired by seed."""
    cells = {name: cell for name, cell in CELLS.items() if _label(name, ALL) in found}
    first = {name: found[_label(name, ALL)] for name in cells}
    heads = [f"{name} ({cell.steps:,} steps; {first[name].rate})" for name, cell in cells.items()]
    lines = [f"| kept in training | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for row in ROWS:
        cells_of_row = [_shown(found.get(_label(name, row)), first[name]) for name in cells]
        lines.append(f"| {row} | {' | '.join(cells_of_row)} |")
    return "\n".join(lines)


def _shown(one: Curves | None, all_tokens: Curves) -> str:
    """Return R@1 of a row in a cell and, in brackets, what it is above all tokens; "" if it has not been trained."""
    if one is None:
        return ""
    recalls = {seed: mean_recall(points[-1]) for seed, points in one.seeds.items()}
    if one is all_tokens:
        return with_interval(recalls.values())
    paired = [recalls[s] - mean_recall(points[-1]) for s, points in all_tokens.seeds.items() if s in recalls]
    return f"{with_interval(recalls.values())} ({with_interval(paired)})"


if __name__ == "__main__":
    run_command(main, Quarter)
