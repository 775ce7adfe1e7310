"""Records of studies report what their search found."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "records").glob("*.json"))  # of studies that one runs; closed ones are folders


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
