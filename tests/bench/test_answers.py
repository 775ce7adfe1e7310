"""The page on a quarter of the tokens: its table is its record."""

from pathlib import Path

import numpy as np
import pytest

from bench.answers import MARKS, Record, quarter_figure, quarter_table, with_interval
from bench.readme import put_between_marks

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_table_and_the_picture_of_its_record() -> None:
    record = Record(ROOT / "records/quarter.json")
    page = (ROOT / "docs/quarter.md").read_text(encoding="utf-8")
    assert put_between_marks(page, quarter_table(record), "quarter", MARKS) == page
    assert all(axis.has_data() for axis in quarter_figure(record).axes)


def test_an_interval_is_students_and_trainings_are_compared_seed_by_seed() -> None:
    assert with_interval(np.array([1.0, 2.0, 3.0]), signed=True) == "+2.0 ±2.5"  # 4.303 / sqrt(3)
    assert with_interval(np.array([61.24])) == "61.2"
    record = Record.__new__(Record)
    found = {"row": 0.5, "row_s1": 0.6, "row_s2": 0.7, "base": 0.1, "base_s2": 0.2}
    record.runs = {name: {"found": {"x_new_i2t_r1": value}} for name, value in found.items()}
    assert record.less("row", "base") == pytest.approx([40.0, 50.0])
