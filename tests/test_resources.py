"""Cards, prompts and settings are found from any working directory; one's own come first."""

from pathlib import Path

import pytest

from filip import resources
from filip.data.cards import load_source
from filip.eval.cards import load_card
from filip.eval.prompts import load_ensemble
from filip.report.tables.__main__ import load_published
from filip.train.config import TrainConfig
from filip.train.engine import settings_path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_everything_is_found_from_an_empty_folder(empty: Path) -> None:
    assert load_source("cc3m").name == load_source("data/cc3m.yaml").name == "cc3m"
    assert load_card("cifar10").name == load_card("eval/cifar10.yaml").name == "cifar10"
    assert load_ensemble("eval/prompts.yaml", "cifar10") == load_ensemble("prompts", "cifar10")
    assert load_ensemble("prompts_clip", "cifar10") != load_ensemble("prompts", "cifar10")
    assert load_published("eval/paper_tables.yaml") == load_published("paper_tables")
    assert settings_path(TrainConfig(zero_stage=2, precision="bf16")).name == "zero2_bf16.json"


def test_a_file_in_the_working_directory_comes_before_the_packages(empty: Path) -> None:
    (empty / "data").mkdir()
    (empty / "data/cc3m.yaml").write_text("title: My own\n")
    assert load_source("cc3m").title == load_source("data/cc3m.yaml").title == "My own"
    (empty / "data/mine.yaml").write_text("title: Mine\n")
    assert {"mine", "cc3m", "coco"} <= set(resources.names("source"))
