"""The demo through Snakemake on a reduced corpus: every stage and table, interrupted in a training, and once more."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.support.ports import free_port
from tests.support.snakemake_runs import run_snakemake, run_study, study_command
from workflow.run import processes
from workflow.study import ROOT

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]  # the fixture runs the study


def reduced(config: dict) -> dict:
    """Return the demo with few concepts, a tiny model and a handful of steps; every stage and every table."""
    config |= {"study": "reduced", "seeds": 1}
    config["demo"] = {"port": free_port(), "limit": 48, "cache": str(ROOT / ".cache" / "demo")}
    config["demo"] |= {"scenes": 96, "test_scenes": 24}
    few_steps = ["global_batch=32", "max_steps=6", "log_every=2"]
    few_steps += ["optimizer.warmup_steps=2"]
    config["train"]["overrides"] += few_steps
    config["launch"]["master_port"] = free_port()
    config["runs"] = {name: config["runs"][name] for name in ("clip", "filip")}
    config["fine_tune"] = {"filip_ft": config["fine_tune"]["filip_ft"]}
    # not few_steps: it has its own batches
    config["efficiency_train"] |= {"gathered": 128, "overrides": []}
    config["efficiency"] = {name: config["efficiency"][name] for name in ("late_64_bf16_25",)}
    config["tables"] = {
        "zero_shot": ["clip", "filip"],
        "retrieval": ["filip", "filip_ft"],
        "component_ablation": ["clip", "filip"],
        "selection": ["filip"],
        "scene_pointing": ["filip"],
    }
    config["alignment"]["models"] = ["filip"]
    config["explorer"]["models"] = ["clip", "filip"]
    config["eval"]["root"] = "results/reduced/corpus/eval"
    return config


@pytest.fixture(scope="module")
def finished(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run the reduced study: npm corpus, HTTP server, download, one and two ranks, tables. Ctrl-C ends it in its first
    training, and the same command continues.
    """
    config = tmp_path_factory.mktemp("study") / "reduced.yaml"
    config.write_text(yaml.safe_dump(reduced(yaml.safe_load((ROOT / "workflow/config/demo.yaml").read_text()))))
    command, environment = study_command(cwd=clone, config=config)
    with subprocess.Popen(command, cwd=clone, env=environment, stderr=subprocess.PIPE, process_group=0) as process:
        while process.poll() is None and not list((clone / "results/reduced/runs").glob("*/log.jsonl")):
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=120)[1].decode()
    assert process.returncode != 0, said[-6000:]
    while processes(str(clone / "results/reduced")):
        time.sleep(0.1)
    done = run_study("--show-failed-logs", cwd=clone, config=config, timeout=1500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return clone, config


def test_a_whole_run_has_every_stage_and_its_funnel_adds_up(finished: tuple[Path, Path]) -> None:
    results = finished[0] / "results/reduced"
    summary = json.loads((results / "summary.json").read_text())
    assert {"demo_corpus", "download/demo", "translate/demo", "train/filip"} <= summary["stages"].keys()
    for run in ("clip", "filip", "filip_ft"):
        assert summary["runs"][run]["samples_per_second"] > 0
    corpus = json.loads((results / "corpus/corpus.json").read_text())
    stages = {part["stage"]: part for part in summary["funnel"]}
    for part in summary["funnel"]:
        assert part["in"] == part["out"] + sum(part["dropped"].values())
    assert list(stages) == ["prepare", "text_rules", "download", "translate"]
    assert stages["text_rules"]["out"] == stages["download"]["in"]
    dropped = [sum(stages[stage]["dropped"].values()) for stage in ("text_rules", "download")]
    assert sum(corpus["planted"].values()) <= sum(dropped)


def test_tables_and_reports_have_what_was_trained(finished: tuple[Path, Path]) -> None:
    clone, config = finished
    results = clone / "results/reduced"
    tables = json.loads((results / "summary.json").read_text())["tables"]
    for table in ("zero_shot", "retrieval", "selection", "scene_pointing", "component_ablation", "efficiency_ablation"):
        assert (results / f"tables/{table}.md").is_file() and tables[table]
    row = tables["efficiency_ablation"]["rows"][0]["cells"]
    facts = [row[key]["value"] for key in ("interaction", "embed_dim", "precision", "token_keep_ratio")]
    assert facts == ["token-wise", 64, "bf16", 0.25]
    report = (results / "report.html").read_text()
    assert 'aria-label="Paired differences"' in report and 'href="explore.html"' in report
    assert '"label":"FILIP"' in (results / "explore.html").read_text()
    done = run_snakemake("--report", "results/reduced/report-snakemake.html", cwd=clone, config=config)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    page = (results / "report-snakemake.html").read_text()
    for name in ("zero_shot.html", "component_ablation.html", "alignment.png", "report.html"):
        assert name in page


def test_a_second_run_does_nothing_and_prompts_rerun_only_what_depends_on_them(finished: tuple[Path, Path]) -> None:
    clone, config = finished
    again = run_snakemake(cwd=clone, config=config)
    assert "Nothing to be done" in again.stdout + again.stderr
    (clone / "eval/prompts.yaml").touch()
    planned = run_snakemake("-n", "--quiet", "rules", cwd=clone, config=config)
    printed = planned.stdout + planned.stderr
    for affected in ("evaluate", "alignment_sheet", "tables"):
        assert affected in printed
    for unaffected in ("pretrain", "fine_tune", "download", "translate", "efficiency"):
        assert unaffected not in printed
