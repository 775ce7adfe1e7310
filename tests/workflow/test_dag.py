"""The DAG through Snakemake itself: dry runs of every study, lint, and a complete run on a reduced corpus."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workflow.study import ROOT

STUDIES = ["demo", "ablation", "base", "large"]


def snakemake(
    *arguments: str, cwd: Path, config: Path, timeout: int = 120
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "PYTHONPATH": str(cwd),
    }
    command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--cores", "2", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as a fresh checkout has it: no results, no caches, so no data at all."""
    target = tmp_path_factory.mktemp("clone") / "filip"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "results", ".snakemake", ".*cache", "__pycache__", "*.egg-info"
    )
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_dry_run_prints_the_complete_dag_without_data(clone: Path, study: str) -> None:
    done = snakemake("-n", cwd=clone, config=clone / f"workflow/config/{study}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((clone / f"workflow/config/{study}.yaml").read_text())
    printed = done.stdout + done.stderr
    for run in config["runs"]:
        assert f"models/{run}.safetensors" in printed
    counts = {
        line.split()[0]: int(line.split()[1])
        for line in printed.splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }
    tuned = {tune["source"] for tune in config.get("fine_tune", {}).values()}
    assert counts["pretrain"] == len(config["runs"])
    assert counts.get("fine_tune", 0) == len(config.get("fine_tune", {}))
    assert counts.get("efficiency", 0) == len(config.get("efficiency", {}))
    assert counts["download"] == counts["translate"] == len({*config["sources"], *tuned})
    assert counts["summary"] == 1


@pytest.mark.slow
def test_lint_is_clean(clone: Path) -> None:
    done = snakemake("--lint", cwd=clone, config=clone / "workflow/config/demo.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_config_that_breaks_the_schema_stops_with_one_sentence(clone: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((clone / "workflow/config/demo.yaml").read_text())
    config["demo"]["port"] = "eighty"
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(config))
    done = snakemake("-n", cwd=clone, config=broken)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "demo.port" in output and "eighty" in output
    assert "Traceback" not in output and "Building DAG" not in output


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
