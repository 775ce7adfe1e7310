"""Sizes and settings beside the paper's: what the configs say, cell by cell."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from filip.report.results import Results
from filip.report.table import Table
from filip.report.tables import build_tables
from filip.report.tables.__main__ import load_published
from filip.study import Study
from tests.report.results import write

ROOT = Path(__file__).parents[2]


def tables_of(name: str, tmp_path: Path) -> dict[str, Table]:
    """Return the tables of a study with no evaluations yet, after trainings that recorded their config."""
    study = Study(yaml.safe_load((ROOT / "workflow" / "config" / f"{name}.yaml").read_text()))
    for run in study.trained:
        write(tmp_path / "models" / f"{run}.json", {"config": asdict(study.resolved(run))})
    return build_tables(study, Results(tmp_path), load_published("paper_tables"))


def values(table: Table, label: str) -> dict[str, object]:
    (row,) = [row for row in table.rows if row.label == label]
    return {column.key: row.cells[column.key].value for column in table.columns}


@pytest.mark.parametrize(
    ("study", "run", "paper", "trained"),
    [
        ("base", "FILIP-base-ViT-B/32", "FILIP-base", "pre-training, base"),
        ("large", "FILIP-large-ViT-L/14", "FILIP-large", "pre-training, large"),
        ("ablation", "FILIP-base", "FILIP-base", "ablations, base"),
    ],
)
def test_our_sizes_and_settings_are_the_paper_s(study: str, run: str, paper: str, trained: str, tmp_path: Path) -> None:
    tables = tables_of(study, tmp_path)
    ours, theirs = (
        [row for row in tables["model_sizes"].rows if (row.kind == "paper") == published] for published in (False, True)
    )
    (own,) = [row for row in ours if row.run == next(r.run for r in ours if r.label.startswith(run))]
    (stated,) = [row for row in theirs if row.label == paper]
    for column in tables["model_sizes"].columns:
        assert own.cells[column.key].value == stated.cells[column.key].value, column.key
    training = tables["training_settings"]
    (row,) = [r for r in training.rows if r.run == own.run]
    said = values(training, trained)
    for key in ("length", "image_size", "optimizer", "base_lr", "weight_decay", "warmup", "precision", "tokens"):
        assert row.cells[key].value == said[key], key
    assert str(said["batch"]).split()[0] == row.cells["batch"].value
    assert row.cells["augmentation"].value == said["augmentation"]


def test_fine_tunings_stand_in_a_section_of_their_own(tmp_path: Path) -> None:
    table = tables_of("large", tmp_path)["training_settings"]
    tuned = [row for row in table.rows if row.section == "fine-tuning"]
    assert tuned and table.sections == ["pre-training", "fine-tuning", "published"]
    said = values(table, "fine-tuning")
    for row in tuned:
        for key in ("batch", "length", "image_size", "base_lr", "weight_decay", "augmentation"):
            assert row.cells[key].value == said[key], key
