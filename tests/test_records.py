"""Records of studies can be traced: to a commit that is in the history, to unchanged files, data and a CPU."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "records").glob("*.json"))  # of studies that one runs; closed ones are folders
SHALLOW = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.skipif(SHALLOW.stdout.strip() != "false", reason="needs the history of the repository")
@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_names_unchanged_code_of_the_history(record: Path) -> None:
    commits = {run["commit"] for run in json.loads(record.read_text(encoding="utf-8"))["runs"].values()}
    for commit in commits:  # a "+" behind one would say that files had been changed
        assert subprocess.run(["git", "merge-base", "--is-ancestor", commit, "HEAD"], cwd=ROOT).returncode == 0, commit


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
def test_a_record_takes_what_its_search_found_best_on_other_seeds_than_it_reports(record: Path) -> None:
    content = json.loads(record.read_text(encoding="utf-8"))
    for run, search in content["search"].items():
        for setting, value in zip(search["settings"], search["best"], strict=True):
            config = content["runs"][run]["config"]
            for key in setting.split("."):
                config = config[key]
            assert config == value, (run, setting)
        seeds = {seed for tried in search["tried"] for seed in tried["scores"]}
        assert str(content["runs"][run]["config"]["seed"]) not in seeds


@pytest.mark.skipif(SHALLOW.stdout.strip() != "false", reason="needs the history of the repository")
@pytest.mark.parametrize("record", sorted((ROOT / "records" / "speedrun").glob("*.json")), ids=lambda path: path.stem)
def test_a_row_of_the_speedrun_names_the_commit_of_its_program_and_the_board_shows_it(record: Path) -> None:
    content = json.loads(record.read_text(encoding="utf-8"))
    program = f"{content['commit']}:records/speedrun.py"
    assert subprocess.run(["git", "cat-file", "-e", program], cwd=ROOT).returncode == 0
    assert subprocess.run(["git", "merge-base", "--is-ancestor", content["commit"], "HEAD"], cwd=ROOT).returncode == 0
    assert content["cpu"]["model"] and content["cpu"]["flags"] and len(content["trainings"]) >= 1
    board = (ROOT / "records" / "README.md").read_text(encoding="utf-8")
    assert content["row"] in board
