"""Bold in the tables: what is ahead of all others by a difference that holds over trainings and images."""

import shutil

import pytest

from filip.eval.outcomes import Outcomes, write_outcomes
from filip.report.table import Table
from tests.report.results import STUDY, cells, hits, tables_of, task, write, write_tasks


def leaders(table: Table, column: str) -> list[int]:
    return [n for n, row in enumerate(table.rows) if column in row.cells and row.cells[column].leads]


def test_of_one_training_nothing_is_bold_and_the_table_says_so(folder):
    for name in ("zero_shot", "retrieval", "component_ablation"):
        shown = [cell for row in tables_of(folder)[name].rows for cell in row.cells.values()]
        assert any(cell.less for cell in shown) and not any(c.leads or (c.less and c.less.holds) for c in shown)
        assert any("Nothing is marked for fewer than 5" in note for note in tables_of(folder)[name].notes)


def test_of_five_trainings_what_holds_is_bold_in_the_primary_columns(folder):
    for run in ("clip", "filip"):
        for seed in (1, 2, 3, 4):
            shutil.copytree(folder / "eval" / run, folder / "eval" / f"{run}_s{seed}")
    write(folder / "study.json", {**STUDY, "seeds": 5})
    table = tables_of(folder)["zero_shot"]
    assert leaders(table, "demo_food") == [1] and not any("Nothing is marked" in note for note in table.notes)
    write(folder / "study.json", {**STUDY, "seeds": 5, "headline": ["zero_shot/demo_animals"]})
    table = tables_of(folder)["zero_shot"]
    assert leaders(table, "demo_food") == [] and table.rows[1].cells["demo_food"].less.p is None


@pytest.mark.usefixtures("one_training_is_enough")
def test_bold_is_what_is_ahead_of_all_others_by_a_difference_that_holds(folder):
    tables = tables_of(folder)
    assert all(leaders(tables["component_ablation"], c.key) == [2] for c in tables["component_ablation"].columns)
    assert [row.section for row in tables["retrieval"].rows] == ["zero-shot", "zero-shot", "fine-tuned"]
    assert all(leaders(tables["retrieval"], c.key) == [1] for c in tables["retrieval"].columns)
    write_tasks(folder, "filip", {"demo_food": task(0.11), "demo_animals": task(0.02, 300, 130)})
    table = tables_of(folder)["zero_shot"]
    food, animals = (table.rows[1].cells[name].less for name in ("demo_food", "demo_animals"))
    assert food.effect > 0 and not food.holds and animals.holds
    # the baseline can lead too
    assert leaders(table, "demo_food") == [] and leaders(table, "demo_animals") == [0]


def test_an_average_over_benchmarks_that_share_concepts_draws_them_together(folder):
    """Two benchmarks with the same images: their average is as uncertain as one of them, not less by a root of two."""
    for run, value in (("clip", 0.1), ("filip", 0.3)):
        file = folder / "eval" / run / "zero_shot" / "all.json"
        tasks = {name: task(value, 300, 130) for name in ("demo_food", "demo_animals")}
        write(file, {"benchmarks": tasks})
        shared = Outcomes.of([f"s{n}" for n in range(300)], {"top1": hits(value, 300)}, [f"U{n}" for n in range(300)])
        write_outcomes(file, dict.fromkeys(tasks, shared))
    cell = cells(tables_of(folder)["zero_shot"], STUDY["runs"]["filip"]["label"])["average"]
    alone = 2 * 1.96 * (0.3 * 0.7 / 300) ** 0.5
    assert cell.ci95[1] - cell.ci95[0] == pytest.approx(alone, rel=0.08)
    assert cell.less.interval[1] - cell.less.interval[0] == pytest.approx(2 * 1.96 * (0.2 * 0.8 / 300) ** 0.5, rel=0.08)
