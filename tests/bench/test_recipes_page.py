"""The page of recipes gets its figures from the study's tables, and keeps what stands around them."""

from __future__ import annotations

import json
from pathlib import Path

from bench.studies.recipes_page import BEGIN, END, RecipesPage, main
from filip.report.table import Cell, Column, Less, Row, Table


def test_both_tables_are_written_between_the_marks(tmp_path: Path) -> None:
    key = "demo_scenes_new_i2t_r1"
    columns = [Column(key, "R@1", outcomes=["x/r1"]), Column("time_ratio", "x first row", unit="ratio")]
    first = {key: Cell(0.306, 0.001, seeds=3, std=0.116), "time_ratio": Cell(1.0)}
    holds = Less(0.22, [0.1, 0.3], 0.01, True)
    smooth = {key: Cell(0.526, 0.001, seeds=3, std=0.028, less=holds), "time_ratio": Cell(1.7)}
    chance = Less(-0.002, [-0.1, 0.1], 0.9, False)
    late = {key: Cell(0.304, 0.001, seeds=3, less=chance), "time_ratio": Cell(reason="no efficiency row")}
    rows = [Row(name, "ours", cells, run=name) for name, cells in (("a", first), ("b", smooth), ("c", late))]
    (tmp_path / "tables").mkdir()
    content = {"tables": {"recipes": Table("recipes", "", columns, rows).as_json()}}
    (tmp_path / "tables" / "tables.json").write_text(json.dumps(content))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(RecipesPage(str(tmp_path), str(page)))
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n") and "old" not in text
    for line in (
        "| *chance* | *0.1* |  |",
        "| `a` | 30.6 ±11.6 | 1.00 |",
        "| `b` | 52.6 ±2.8 | 1.70 |",
        "| `c` | 30.4 | – |",
        "| `b` | +22.0 |",
        "| `c` | −0.2 \\* |",
    ):
        assert line in text.splitlines(), line
