"""The tables of bench/studies from records: the rate that the search chose, and differences paired by seed."""

import json
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

from bench.studies import half_truths, onset_page, quarter, relations, terms, variants


def write(folder: Path, row: str, found: dict[tuple[str, int], float]) -> None:
    """Write a record for each (rate, seed): R@1 one point above and below ``found`` in the two directions."""
    for (rate, seed), value in found.items():
        points = [{"step": 300, "seconds": 50.0, "hard": {"i2t": value - 1, "t2i": value + 1}}]
        record = {"row": row, "rate": rate, "seed": seed, "steps": 300, "points": points}
        name = f"{row}-{rate}-{seed}".replace(":", "").replace(" ", "-")
        (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


SEARCHED = {
    ("2e-3", 100): 10.0, ("2e-3", 101): 10.0, ("4e-3", 100): 20.0,
    ("4e-3", 101): 12.0, ("8e-3", 100): 9.0, ("8e-3", 101): 19.0,
}  # fmt: skip
FIRST, OTHER = [20.0, 24.0, 28.0], [26.0, 29.0, 35.0]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_terms_are_compared_with_the_first_by_seed_at_the_rate_of_their_search(tmp_path: Path) -> None:
    write(tmp_path, "token_wise", SEARCHED | {("4e-3", s): v for s, v in enumerate(FIRST)})
    at_edge = {("8e-3", 100): 40.0, ("8e-3", 101): 40.0}
    never_chosen = {("4e-3", 0): 99.0}
    write(tmp_path, "a_term", SEARCHED | at_edge | never_chosen | {("8e-3", s): v for s, v in enumerate(OTHER)})
    _, _, first, other = cells(terms.table({one.row: one for one in onset_page.read(tmp_path)}))
    assert first[:2] == ["`token_wise`", "4e-3 of 2e-3, 4e-3, 8e-3"] and first[5] == ""
    assert first[3].startswith("23.0 ±") and first[4].startswith("25.0 ±")
    assert other[:3] == ["`a_term`", "8e-3 (edge) of 2e-3, 4e-3, 8e-3", "3"]
    interval = ttest_rel(OTHER, FIRST).confidence_interval()
    assert other[5] == f"6.0 ±{(interval.high - interval.low) / 2:.1f}"


def test_a_cell_without_all_tokens_is_left_out_and_rows_follow_their_cell(tmp_path: Path) -> None:
    write(tmp_path, "AdamW, 128: all tokens", SEARCHED | {("4e-3", s): v for s, v in enumerate(FIRST)})
    write(tmp_path, "AdamW, 128: a quarter", {("4e-3", s): v for s, v in enumerate(OTHER)})
    write(tmp_path, "AdamW, 32: a quarter", {("4e-3", s): v for s, v in enumerate(OTHER)})
    head, _, *lines = cells(quarter.table({one.row: one for one in onset_page.read(tmp_path)}))
    assert head == ["kept in training", "AdamW, 128 (400 steps; 4e-3)"]
    found = {line[0]: line[1] for line in lines}
    assert found["all tokens"].startswith("24.0 ±") and found["a half"] == ""
    assert found["a quarter"].startswith("30.0 ±") and "(6.0 ±" in found["a quarter"]


@pytest.mark.parametrize("page", [half_truths, quarter, relations, terms, variants])
def test_the_page_has_the_marks(page: object) -> None:
    text = onset_page.PAGE.read_text(encoding="utf-8")
    begin, end = page.MARKS  # type: ignore[attr-defined]
    assert text.index(begin) < text.index(end)
