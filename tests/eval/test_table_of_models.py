"""One table of several models, in the files of the benchmarks and of the models."""

import csv
import json
from pathlib import Path

import pytest

from filip.cli.command import run_command
from filip.eval.table import TableOptions, main
from filip.export.hf_folder import clip_tokenizer
from filip.models import build_model
from tests.eval.benchmark_files import SELECTION
from tests.eval.miniature import tiny_config, write_model
from tests.support.clips import hf_folder
from tests.support.late_interaction_models import write_late_interaction_model

TEXTS = ["a red cat", "two dogs", "red dogs the cat"]
CARDS = ["sugar_crepe_swap_att", "aro_relation"]


def table(root: Path, models: list[str], *more: str) -> None:
    given = [f"models=[{','.join(models)}]", f"root={root}", f"out={root / 'out'}", *more]
    run_command(main, TableOptions, argv=given)


def test_three_models_in_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in CARDS:
        SELECTION[name](tmp_path, name)
    file = tmp_path / "sugar_crepe" / "data" / "swap_att.json"  # in words that all of the models know
    rows = json.loads(file.read_text())
    for n, row in enumerate(rows.values()):
        row["caption"], row["negative_caption"] = TEXTS[n % 3], TEXTS[(n + 1) % 3]
    file.write_text(json.dumps(rows))
    hf_folder(tmp_path / "clip")
    clip_tokenizer(build_model(tiny_config())).save_pretrained(tmp_path / "clip")
    models = [
        write_model(tmp_path / "filip.safetensors"),
        f"hf:{tmp_path / 'clip'}",
        write_late_interaction_model(tmp_path / "ColQwen2", "ColQwen2"),
    ]
    table(tmp_path, models, f"data=[{','.join(CARDS)}]", "form=csv")
    printed = capsys.readouterr().out
    lines = list(csv.DictReader(printed[printed.index("model,") :].splitlines()))
    names = list(dict.fromkeys(line["model"] for line in lines))
    assert len(names) == len(models)

    def numbers(name: str, benchmark: str) -> dict[str, float]:
        return {
            line["measure"]: float(line["value"])
            for line in lines
            if (line["model"], line["benchmark"]) == (name, benchmark)
        }

    assert list(numbers(names[0], CARDS[0])) == ["by s^I", "by s^T", "by their mean"]
    assert list(numbers(names[1], CARDS[0])) == ["by their mean"]  # a pooled model has one similarity
    for name, measure in zip(names, ("by s^I", "by their mean", "by s^T"), strict=True):
        file = next(f for f in (tmp_path / "out").rglob(f"{CARDS[0]}.json") if json.loads(f.read_text())["run"] == name)
        by = {"by s^I": "image", "by their mean": "mean", "by s^T": "text"}[measure]
        result = json.loads(file.read_text())["benchmarks"][CARDS[0]][by]["value"]
        assert numbers(name, CARDS[0])[measure] == pytest.approx(result)

    table(tmp_path, models)  # from the results that are kept, of all cards that are below root
    again = capsys.readouterr()
    assert "done before" in again.err and "own similarity by s^T" in again.out
    (shown,) = (line for line in again.out.splitlines() if line.startswith("sugar_crepe_swap_att") and "s^I" in line)
    assert f"{100 * numbers(names[0], CARDS[0])['by s^I']:.1f}" in shown


def test_two_models_of_one_name_have_a_column_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every own study calls its model filip."""
    SELECTION[CARDS[1]](tmp_path, CARDS[1])
    for seed in (1, 2):
        (tmp_path / f"study{seed}").mkdir()
    models = [write_model(tmp_path / f"study{seed}/filip.safetensors", seed=seed) for seed in (1, 2)]
    table(tmp_path, models, f"data=[{CARDS[1]}]", "form=csv")
    printed = capsys.readouterr().out
    lines = list(csv.DictReader(printed[printed.index("model,") :].splitlines()))
    assert len({line["model"] for line in lines}) == 2 and len(lines) % 2 == 0
    assert len({*map(str, (tmp_path / "out").rglob(f"{CARDS[1]}.json"))}) == 2
