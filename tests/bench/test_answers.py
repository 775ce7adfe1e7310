"""The pages that answer one question: their tables are their records, and a goal is reached where the curve says."""

from pathlib import Path

import numpy as np
import pytest

from bench.answers import ANSWERS, Record, marks, maximum_row, seconds_to, with_interval
from bench.readme import put_between_marks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("study", ANSWERS)
def test_a_page_has_the_table_and_the_picture_of_its_record(study: str) -> None:
    record, (name, figure, table) = Record(ROOT / "records" / f"{study}.json"), ANSWERS[study]
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert put_between_marks(page, table(record), study, marks(study)) == page
    assert f"(images/{study}.svg)" in page and (ROOT / "docs" / "images" / f"{study}.svg").is_file()
    assert all(axis.has_data() for axis in figure(record).axes)


def test_the_seconds_to_a_goal_lie_between_two_lengths_or_are_a_bound() -> None:
    goals = {10: "< 10", 40: "15", 60: "20", 65: "30", 71: "> 40"}
    assert {goal: seconds_to([10, 20, 40], [20, 60, 70], goal) for goal in goals} == goals


def test_an_interval_is_students_and_a_row_is_named_as_in_its_study() -> None:
    assert with_interval(np.array([1.0, 2.0, 3.0]), signed=True) == "+2.0 ±2.5"  # 4.303 / sqrt(3)
    assert with_interval(np.array([61.24])) == "61.2"
    assert [maximum_row(form, 9) for form in ("hard", "t-0.1", "smooth_muon")] == ["hard_9", "t_9-0.1", "smooth_9_muon"]


def test_trainings_are_compared_seed_by_seed() -> None:
    record = Record.__new__(Record)
    found = {"row": 0.5, "row_s1": 0.6, "row_s2": 0.7, "base": 0.1, "base_s2": 0.2}
    record.runs = {name: {"found": {"x_new_i2t_r1": value}} for name, value in found.items()}
    assert record.less("row", "base") == pytest.approx([40.0, 50.0])
