"""One job per card: results put together are those of one command, and a data set that is missing costs one cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from filip.command import run_command
from filip.eval.merge import Merge
from filip.eval.merge import main as merge
from filip.eval.outcomes import read_outcomes
from filip.eval.picture import main as picture
from filip.eval.pictures.alignment import AlignmentSheet
from filip.report.results import Results
from filip.report.rows import build_tables
from filip.study import Study
from tests.eval.miniature import run_protocol, write_model, write_webdataset

ROOT = Path(__file__).parents[2]
TASKS = ["demo_food", "demo_skin_tone", "demo_animals"]
CAPTIONS = ["demo_fluent", "demo_flat"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the data of all cards but demo_animals, and a model."""
    folder = tmp_path_factory.mktemp("per_card")
    write_webdataset(folder / "demo_food", [f"dish {i}" for i in range(8)], [i % 8 for i in range(24)])
    write_webdataset(folder / "demo_skin_tone", ["light", "dark"], [0, 1, 0, 1])
    for name in CAPTIONS:
        write_webdataset(folder / name, None, [[f"{name} {i}", "more"][: 1 + i % 2] for i in range(12)])
    write_model(folder / "m.safetensors")
    return folder


def run(protocol: str, root: Path, out: Path, cards: list[str], *more: str) -> dict[str, Any]:
    given = [f"model={root}/m.safetensors", f"root={root}", f"data=[{','.join(cards)}]", f"out={out}"]
    run_protocol(protocol, [*given, *more])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


@pytest.mark.parametrize(
    ("protocol", "cards"),
    [("zero_shot", TASKS[:2]), ("retrieval", CAPTIONS), ("linear_probe", TASKS[:2]), ("alignment", CAPTIONS)],
)
def test_results_of_single_cards_put_together_are_the_files_of_one_command(
    root: Path, tmp_path: Path, protocol: str, cards: list[str]
) -> None:
    run(protocol, root, tmp_path / "one.json", cards)
    parts = [tmp_path / "parts" / f"{card}.json" for card in cards]
    for card, part in zip(cards, parts, strict=True):
        run(protocol, root, part, [card])
    run_command(merge, Merge, argv=[f"parts=[{','.join(map(str, parts))}]", f"out={tmp_path}/merged.json"])
    assert (tmp_path / "merged.json").read_text() == (tmp_path / "one.json").read_text()
    one, merged = (read_outcomes(tmp_path / f"{name}.json") for name in ("one", "merged"))
    assert list(one) == list(merged)
    for group, outcomes in one.items():
        np.testing.assert_array_equal(outcomes.key, merged[group].key)
        for measure, values in outcomes.values.items():
            np.testing.assert_array_equal(values, merged[group].values[measure])


def test_a_missing_data_set_costs_its_cell_and_no_other(root: Path, tmp_path: Path) -> None:
    """The tables are equal with a job per card and without; one of the benchmarks is not there."""
    folder = tmp_path / "results" / "eval" / "filip"
    for card in TASKS:
        run("zero_shot", root, folder / "zero_shot" / f"{card}.json", [card], "missing=skip")
    parts = ",".join(str(folder / "zero_shot" / f"{card}.json") for card in TASKS)
    run_command(merge, Merge, argv=[f"parts=[{parts}]", f"out={folder}/zero_shot.json"])
    config = yaml.safe_load((ROOT / "workflow/config/demo.yaml").read_text())
    config["eval"]["zero_shot"], config["tables"] = TASKS, {"zero_shot": ["filip"]}
    config["efficiency"], config["seeds"] = {}, 1
    tables = build_tables(Study(config), Results(tmp_path / "results"), {})
    cells = tables["zero_shot"].rows[0].cells
    assert [cells[card].value is not None for card in TASKS] == [True, True, False]
    assert cells["demo_animals"].reason is not None and "no data set at" in cells["demo_animals"].reason
    assert cells["average"].value is None and cells["average"].reason == cells["demo_animals"].reason

    grouped = tmp_path / "grouped" / "eval" / "filip" / "zero_shot.json"
    run("zero_shot", root, grouped, TASKS, "missing=skip")
    again = build_tables(Study(config), Results(tmp_path / "grouped"), {})
    assert again["zero_shot"].as_json() == tables["zero_shot"].as_json()


def test_all_that_is_missing_is_named_before_a_model_is_loaded(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for protocol in ("zero_shot", "linear_probe"):
        with pytest.raises(SystemExit):
            given = [f"root={root}", "data=[demo_food,demo_animals,demo_objects]", f"out={tmp_path}/o.json"]
            run_protocol(protocol, ["model=no_such_model", *given])
        said = capsys.readouterr().err
        assert "2 of 3 data sets cannot be evaluated" in said and "no_such_model" not in said
        assert "demo_animals: no data set at" in said and "demo_objects: no data set at" in said


def test_a_sheet_of_pictures_without_data_says_so(root: Path, tmp_path: Path) -> None:
    given = [f"model={root}/m.safetensors", f"root={root}", "data=[demo_unseen]", "missing=skip"]
    run_command(picture, AlignmentSheet, argv=[*given, f"out={tmp_path}/sheet.png"])
    assert (tmp_path / "sheet.png").is_file()
    found = run("alignment", root, tmp_path / "a.json", ["demo_unseen"], "missing=skip")
    assert found["benchmarks"] == {} and "no data set at" in found["skipped"]["demo_unseen"]


def test_only_results_of_one_model_on_different_benchmarks_are_put_together(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("zero_shot", root, tmp_path / "a.json", ["demo_food"])
    run("zero_shot", root, tmp_path / "b.json", ["demo_skin_tone"], "prompts=a {c}")
    for parts, message in (
        ("a.json,a.json", "has demo_food, as another part does"),
        ("a.json,b.json", "are of different evaluations: settings.prompts is 'a {c}' and 'eval/prompts.yaml'"),
        ("a.json,c.json", "there is no file or folder"),
    ):
        listed = ",".join(f"{tmp_path}/{part}" for part in parts.split(","))
        with pytest.raises(SystemExit):
            run_command(merge, Merge, argv=[f"parts=[{listed}]", f"out={tmp_path}/m.json"])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "m.json").exists()
