"""The speedrun's verdict, and what the study of the onset makes of its curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats

from bench.speedrun import Place, Speedrun, chance_that_below, configure, main, recall, settings_of_record
from bench.studies.onset import gini, settings_of
from bench.studies.onset_page import Curves, at_seconds, differences, passing, read, table
from filip.errors import UserError
from filip.interaction import Similarity


def test_a_goal_is_reached_by_a_one_sided_t_test() -> None:
    values = [51.0, 53.5, 52.0, 50.5, 54.0]
    expected = stats.ttest_1samp(values, 50, alternative="greater").pvalue
    assert chance_that_below(values, 50) == pytest.approx(expected)
    assert chance_that_below([49.0, 50.0, 48.0], 50) > 0.5
    assert math.isnan(chance_that_below([60.0], 50))


def test_an_attempt_is_timed_against_a_record_trained_in_turns_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, out = tmp_path / "record", tmp_path / "out"
    record.mkdir()
    with pytest.raises(UserError, match="is not a record"):
        settings_of_record(record)
    (record / "seed-0.json").write_text('{"settings": ["demo_speedrun", "max_steps=2"]}')
    assert settings_of_record(record) == ["demo_speedrun", "max_steps=2"]
    out.mkdir()
    for seed, (seconds, others) in enumerate([(20, 40), (30, 60), (40, 80)]):
        against = {"i2t": 58.0, "t2i": 60.0, "seconds": others}
        log = {"seed": seed, "i2t": 51.0, "t2i": 53.0, "seconds": seconds, "cpu": "a CPU", "against": against}
        (out / f"seed-{seed}.json").write_text(json.dumps(log))
    main(Speedrun(seeds=[0, 1, 2], out=str(out), against=str(record)))
    assert "the record finds 59.0 here in 60.0 CPU seconds; this is 0.50 of its time" in capsys.readouterr().err


def test_recall_ranks_texts_by_one_similarity_and_images_by_the_other() -> None:
    i2t = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.1], [0.0, 0.1, 0.5]])
    t2i = torch.tensor([[0.9, 0.0, 0.0], [0.1, 0.9, 0.0], [0.0, 0.1, 0.5]])
    found = recall(Similarity(i2t, t2i))
    assert found == {"i2t": pytest.approx(200 / 3), "t2i": 100.0}


def test_the_gini_coefficient_of_equal_amounts_is_0_and_of_one_that_has_all_1_less_its_share() -> None:
    found = gini(torch.tensor([[2.0, 2, 2, 2], [0, 0, 5, 0], [0, 0, 0, 0], [1, 3, 0, 0]]))
    pairs = sum(abs(a - b) for a in (1, 3, 0, 0) for b in (1, 3, 0, 0)) / (2 * 16 * 1)
    assert found.tolist() == pytest.approx([0, 0.75, 0, pairs])


def test_the_schedule_of_an_annealed_maximum_is_a_setting_of_a_training() -> None:
    configure(Place(), "demo_speedrun", settings_of("annealed", 400)).check()


def points(*recalls: float) -> list[dict]:
    return [
        {
            "step": 50 * (i + 1),
            "seconds": 5.0 * (i + 1),
            "hard": {"i2t": value - 1, "t2i": value + 1},
            "smooth": {"i2t": value, "t2i": value},
            "scale": 70.0,
            "gini": {"patches": 0.5, "words": 0.6},
        }
        for i, value in enumerate(recalls)
    ]


def test_a_curve_is_read_between_its_measurements() -> None:
    curve = points(10, 30, 40)
    assert passing(curve, "step") == 75 and passing(curve, "seconds") == 7.5
    assert passing(points(1, 2), "step") == math.inf
    assert at_seconds(curve, 12.5) == 35 and math.isnan(at_seconds(curve, 16))


def test_the_rate_of_a_row_is_that_of_its_search_and_the_searchs_seeds_are_not_reported(tmp_path: Path) -> None:
    for row, rate, seed, end in [
        ("hard", "2e-3", 100, 30), ("hard", "4e-3", 100, 40), ("hard", "2e-3", 0, 99), ("hard", "4e-3", 0, 41),
        ("hard", "4e-3", 1, 43), ("top 2", "4e-3", 0, 50),
    ]:  # fmt: skip
        content = {"row": row, "rate": rate, "seed": seed, "steps": 100, "points": points(5, end)}
        (tmp_path / f"{row}-{rate}-{seed}.json").write_text(json.dumps(content))
    hard, top = read(tmp_path)
    assert (hard.row, hard.rate, set(hard.seeds), set(top.seeds)) == ("hard", "4e-3", {0, 1}, {0})
    lines = table([hard, top]).splitlines()
    assert lines[2].startswith("| hard | 4e-3 of 2e-3, 4e-3 | 2 |") and "| 42.0 |" in lines[2]
    assert lines[3].startswith("| top 2 | 4e-3, not searched | 1 | 66.7 |")


def test_a_row_is_compared_with_the_hard_maximum_by_a_paired_t_over_the_seeds_of_both() -> None:
    ends = {"hard": [40, 44, 41], "smooth 0.05": [49, 54, 52]}
    hard, smooth = (
        Curves(row, 100, "4e-3", [], {seed: points(5, end) for seed, end in enumerate(own)})
        for row, own in ends.items()
    )
    low, high = stats.ttest_rel(ends["smooth 0.05"], ends["hard"]).confidence_interval()
    line = differences([hard, smooth]).splitlines()[2]
    assert line.startswith("| smooth 0.05 |") and line.endswith(f"| +10.0 [{low:.1f}, {high:.1f}]* |")
