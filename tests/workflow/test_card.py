"""The study card: the paper's recipe whole, on two ranks, interrupted in its first training, and once more."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.snakemake_runs import run_snakemake, run_study, study_command
from workflow.run import processes
from workflow.study import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(3600)]  # the fixture runs a study of ten minutes
CARD = ROOT / "workflow/config/card.yaml"


@pytest.fixture(scope="module")
def finished(clone: Path) -> Path:
    """Run the study: npm corpus, HTTP server, download, two ranks, tables. Ctrl-C ends it in its first training, and
    the same command continues.
    """
    command, environment = study_command(cwd=clone, config=CARD)
    with open(clone / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=clone, env=environment, stderr=log, process_group=0)
        while process.poll() is None and not list((clone / "results/card/runs").glob("*/log.jsonl")):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(120) != 0, (clone / "log").read_text()[-6000:]
    while processes(str(clone / "results/card")):
        time.sleep(0.1)
    done = run_study("--show-failed-logs", cwd=clone, config=CARD, timeout=3500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return clone


def test_the_card_trains_the_papers_recipe_and_ends_in_its_tables(finished: Path) -> None:
    results = finished / "results/card"
    log = (results / "logs/train/filip.log").read_text()
    for part in ("deepspeed.launcher", "2 x cpu", "lamb", "DeepSpeed, ZeRO-2, fp16", "25% of the tokens by maximum"):
        assert part in log, part
    assert "auto_augment=0.5, back_translation=True" in log
    summary = json.loads((results / "summary.json").read_text())
    assert {"demo_corpus", "train/filip"} <= summary["stages"].keys()
    stages = {part["stage"]: part for part in summary["funnel"]}
    assert list(stages) == ["prepare", "text_rules", "download", "translate"]
    assert stages["download"]["notes"]["engine"] == "img2dataset"
    assert all(part["in"] == part["out"] + sum(part["dropped"].values()) for part in summary["funnel"])
    cells = next(row["cells"] for row in summary["tables"]["retrieval"]["rows"] if row["run"] == "filip")
    for column in ("demo_scenes_new_i2t_r5", "demo_scenes_new_t2i_r5"):
        assert cells[column]["ci95"][0] > cells[column]["chance"], cells[column]
    for table in ("zero_shot", "retrieval", "linear_probe", "component_ablation", "efficiency_ablation"):
        assert summary["tables"][table]["rows"], table
    assert (results / "eval/alignment.png").is_file() and (results / "report.html").is_file()
    done = run_snakemake("--report", "results/card/report-snakemake.html", cwd=finished, config=CARD)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "component_ablation.html" in (results / "report-snakemake.html").read_text()


def test_a_second_run_does_nothing_and_prompts_rerun_only_what_depends_on_them(finished: Path) -> None:
    again = run_snakemake(cwd=finished, config=CARD)
    assert "Nothing to be done" in again.stdout + again.stderr
    (finished / "eval/prompts.yaml").touch()
    planned = run_snakemake("-n", "--quiet", "rules", cwd=finished, config=CARD)
    printed = planned.stdout + planned.stderr
    for affected in ("evaluate", "alignment_sheet", "tables"):
        assert affected in printed
    for unaffected in ("pretrain", "fine_tune", "download", "translate", "efficiency"):
        assert unaffected not in printed
