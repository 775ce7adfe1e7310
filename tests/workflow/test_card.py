"""The study card: the paper's recipe whole, on two ranks, with a FILIP that has learned."""

import json
from pathlib import Path

import pytest

from tests.support.snakemake_runs import run_study
from workflow.study import ROOT


@pytest.mark.system
@pytest.mark.timeout(3600)  # eleven minutes on two cores
def test_the_card_trains_the_papers_recipe_and_ends_in_its_tables(clone: Path) -> None:
    done = run_study("--show-failed-logs", cwd=clone, config=ROOT / "workflow/config/card.yaml", timeout=3500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    results = clone / "results/card"
    log = (results / "logs/train/filip.log").read_text()
    for part in ("deepspeed.launcher", "2 x cpu", "lamb", "DeepSpeed, ZeRO-2, fp16", "25% of the tokens by maximum"):
        assert part in log, part
    assert "auto_augment=1.0, back_translation=True" in log
    summary = json.loads((results / "summary.json").read_text())
    assert [part["notes"]["engine"] for part in summary["funnel"] if part["stage"] == "download"] == ["img2dataset"]
    cells = next(row["cells"] for row in summary["tables"]["retrieval"]["rows"] if row["run"] == "filip")
    for column in ("demo_scenes_new_i2t_r5", "demo_scenes_new_t2i_r5"):
        assert cells[column]["ci95"][0] > cells[column]["chance"], cells[column]
    for table in ("zero_shot", "retrieval", "linear_probe", "component_ablation", "efficiency_ablation"):
        assert summary["tables"][table]["rows"], table
    assert (results / "eval/alignment.png").is_file() and (results / "report.html").is_file()
