"""A study's evaluation of a model: by all protocols, a file for each result, where data may be missing."""

import shutil
from pathlib import Path

import pytest
import yaml

from filip.cli.command import run_command
from filip.eval.__main__ import Evaluation, main
from filip.report.results import Results
from filip.report.tables import build_tables
from filip.study import Study
from tests.eval.miniature import write_model, write_webdataset

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


def evaluate(root: Path, out: Path, cards: list[str], *more: str) -> None:
    given = [f"model={root}/m.safetensors", f"root={root}", f"data=[{','.join(cards)}]", f"out={out}"]
    run_command(main, Evaluation, argv=[*given, *more])


def test_a_job_runs_again_only_what_is_gone(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only = "only={linear_probe:[demo_food]}"
    given = ("protocols=[zero_shot,retrieval,linear_probe]", only)
    evaluate(root, tmp_path / "out", [*TASKS[:2], *CAPTIONS], *given)
    results = sorted(path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.rglob("*.json"))
    assert results == [
        *("linear_probe/demo_food.json", "retrieval/demo_flat.json", "retrieval/demo_fluent.json"),
        *("zero_shot/demo_food.json", "zero_shot/demo_skin_tone.json"),
    ]
    gone = tmp_path / "out/retrieval/demo_flat.json"
    before = gone.read_text()
    gone.unlink()
    capsys.readouterr()
    evaluate(root, tmp_path / "out", [*TASKS[:2], *CAPTIONS], *given)
    assert capsys.readouterr().err.count("done before") == 4 and gone.read_text() == before


def test_a_missing_data_set_costs_its_cell_and_no_other_until_it_is_there(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "eval" / "filip"
    data = tmp_path / "data"
    shutil.copytree(root, data)
    for card in TASKS:  # a job each
        evaluate(data, folder, [card], "protocols=[zero_shot]", "missing=skip")
    config = yaml.safe_load((ROOT / "workflow/config/demo.yaml").read_text())
    config["eval"]["zero_shot"], config["tables"] = TASKS, {"zero_shot": ["filip"]}
    config["efficiency"], config["seeds"] = {}, 1
    cells = build_tables(Study(config), Results(tmp_path / "results"), {})["zero_shot"].rows[0].cells
    assert [cells[card].value is not None for card in TASKS] == [True, True, False]
    assert cells["demo_animals"].reason is not None and "no data set at" in cells["demo_animals"].reason
    assert cells["average"].value is None and cells["average"].reason == cells["demo_animals"].reason

    write_webdataset(data / "demo_animals", ["cat", "dog"], [0, 1])
    shutil.rmtree(data / "demo_food")  # a result that is there stays
    evaluate(data, folder, TASKS, "protocols=[zero_shot]", "missing=skip")
    again = build_tables(Study(config), Results(tmp_path / "results"), {})["zero_shot"].rows[0].cells
    assert [again[card].value is not None for card in TASKS] == [True, True, True]
    assert again["demo_food"].value == cells["demo_food"].value
