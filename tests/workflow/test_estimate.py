"""The time that a study will take: measured on some computers, worked out for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from filip.errors import UserError
from workflow import estimate
from workflow.estimate import Recording, about, asks_for_one, job_seconds, read_costs, run_seconds

# in place of workflow.speed, where any speed will do
MEASURED = ("echo", '{"compute": 1e6, "plain": 1000, "precision": "fp32"}')


def measured(compute: float, plain: float, jobs: dict[str, float], seconds: float = 60.0) -> dict[str, Any]:
    found = {rule: {"count": 1, "seconds": taken, "threads": 1} for rule, taken in jobs.items()}
    speed = {"compute": compute, "plain": plain, "precision": "fp32"}
    return {"cpu": f"{compute} {plain}", "speed": speed, "seconds": seconds, "cores": 2, "jobs": found}


def test_a_job_is_what_explains_its_times_on_the_computers_where_it_was_measured() -> None:
    # training: 1,000 / compute + 200 / plain; corpus: 400 / plain
    costs = [
        measured(10.0, 20.0, {"pretrain": 110.0, "corpus": 20.0}),
        measured(5.0, 20.0, {"pretrain": 210.0, "corpus": 20.0}),
    ]
    here = {"compute": 20.0, "plain": 10.0}
    found = job_seconds("pretrain", costs, here)
    assert found is not None and found == (pytest.approx(50.0 + 20.0), 1)
    assert job_seconds("corpus", costs, here) == (pytest.approx(40.0), 1)
    assert job_seconds("unknown", costs, here) is None
    # recorded in tenths of a second
    at_once = job_seconds("study_config", [measured(10.0, 20.0, {"study_config": 0.0})], here)
    assert at_once is not None and 0 < at_once[0] < 1
    # no negative amount of work, whatever the noise
    noisy = [measured(10.0, 20.0, {"tables": 10.0}), measured(5.0, 20.0, {"tables": 9.0})]
    cost = job_seconds("tables", noisy, {"compute": 1.0, "plain": 20.0})
    assert cost is not None and 8.0 < cost[0] < 12.0


def test_a_run_on_the_computer_that_was_measured_takes_what_it_took() -> None:
    costs = [measured(10.0, 20.0, {"pretrain": 100.0, "corpus": 20.0}, seconds=75.0)]
    jobs = {rule: job_seconds(rule, costs, costs[0]["speed"]) for rule in ("pretrain", "corpus")}
    known = {rule: cost for rule, cost in jobs.items() if cost}
    assert run_seconds(known, {"pretrain": 1, "corpus": 1}, costs, 2) == pytest.approx(75.0)
    assert run_seconds(known, {"pretrain": 2, "corpus": 0}, costs, 2) == pytest.approx(75.0 * 200 / 120)
    assert 37.5 < run_seconds(known, {"pretrain": 1, "corpus": 1}, costs, 4) < 75.0


def test_an_estimate_is_said_with_no_more_digits_than_it_has() -> None:
    assert [about(seconds) for seconds in (3, 44, 95, 560, 40_000)] == [
        "10 seconds", "40 seconds", "2 minutes", "9 minutes", "11 hours"
    ]  # fmt: skip


def test_nothing_is_measured_where_nothing_will_run() -> None:
    assert asks_for_one(["snakemake", "--cores", "2"])
    assert not asks_for_one(["snakemake", "-n"]) and not asks_for_one(["snakemake", "--lint"])


@pytest.mark.slow
def test_a_run_that_only_continued_another_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "COSTS", tmp_path / "costs")
    results = tmp_path / "small"
    results.mkdir()
    with pytest.raises(UserError, match="run the study from beginning to end first"):
        estimate.main(Recording(str(results)))
    run = measured(1.0, 1.0, {"corpus": 3.0, "tables": 2.0})
    whole = {key: run[key] for key in ("seconds", "cores", "jobs")}
    (results / "times.json").write_text(json.dumps(whole))
    with monkeypatch.context() as known:
        known.setattr(estimate, "MEASURE", MEASURED)
        estimate.main(Recording(str(results), cpu="A CPU"))
    (entry,) = read_costs(tmp_path / "costs/small.json")
    assert entry["speed"]["compute"] == 1e6 and entry["speed"]["plain"] == 1000
    estimate.main(Recording(str(results), cpu="A CPU"))  # replaces what it said of this CPU
    (entry,) = read_costs(tmp_path / "costs/small.json")
    assert entry["cpu"] == "A CPU" and entry["jobs"] == whole["jobs"]
    speed = entry["speed"]  # measured by workflow.speed, a process that prints a line of JSON
    assert 0 < speed["compute"] < 1e6 and speed["plain"] > 0 and speed["precision"] in ("fp32", "bf16")
    del whole["jobs"]["corpus"]
    (results / "times.json").write_text(json.dumps(whole))
    with pytest.raises(UserError, match="corpus did not run"):
        estimate.main(Recording(str(results)))


def test_a_run_that_counts_its_jobs_twice_is_estimated_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "MEASURE", MEASURED)
    asked = estimate.Estimate("demo", lambda: 2)
    assert asked({"pretrain": 2}) == asked({"pretrain": 2}) and asked({"tables": 1}).keys() == {"tables"}
    assert capsys.readouterr().err.count("this will take about") == 1


@pytest.mark.parametrize("file", sorted(estimate.COSTS.glob("*.json")), ids=lambda file: file.stem)
def test_the_measurements_of_the_repository_explain_every_rule(file: Path) -> None:
    costs = read_costs(file)
    for rule in costs[0]["jobs"]:
        assert job_seconds(rule, costs, {"compute": 200.0, "plain": 1000.0}), rule
