"""The DAG through Snakemake itself: dry runs of every study, and of configs that it refuses."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from filip.data.cards import load_source
from filip.study import Study
from tests.support.processes import run_well
from tests.support.snakemake_runs import environment_of, run_snakemake, study_command
from workflow.study import ROOT, WorkflowStudy

STUDIES = sorted(path.stem for path in (ROOT / "workflow" / "config").glob("*.yaml"))


def job_counts(printed: str) -> dict[str, int]:
    """Return how many jobs of each rule a dry run counts."""
    lines = [line.split() for line in printed.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def study(name: str) -> dict:
    return yaml.safe_load((ROOT / f"workflow/config/{name}.yaml").read_text())


def planned(clone: Path, config: Path) -> str:
    done = run_snakemake("-n", cwd=clone, config=config)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_dry_run_prints_the_complete_dag_without_data(clone: Path, study: str) -> None:
    printed = planned(clone, Path(f"workflow/config/{study}.yaml"))
    config = yaml.safe_load((clone / f"workflow/config/{study}.yaml").read_text())
    written_out = Study(config)
    for run in [*written_out.runs, *written_out.trials]:
        assert f"models/{run}.safetensors" in printed
    counts = job_counts(printed)
    built = [source for source in config["sources"] if load_source(source).built_by]
    tuned = {tune["source"] for tune in config.get("fine_tune", {}).values()}
    assert counts["pretrain"] == len(written_out.runs) + len(written_out.trials)
    assert counts.get("fine_tune", 0) == len(config.get("fine_tune", {}))
    assert counts.get("efficiency", 0) == bool(config.get("efficiency"))
    sources = {*config["sources"], *tuned}
    on_disk = {source for source in sources if load_source(source).images}
    assert counts.get("ingest", 0) == len(on_disk)
    assert counts.get("download", 0) == counts.get("url_list", 0) == len(sources - on_disk)
    assert counts["translate"] == len(sources)
    assert counts.get("demo_corpus", 0) == len(built)
    assert counts["summary"] == 1
    assert counts.get("explorer", 0) == ("explorer" in config)
    launch = config["launch"]
    if launch["launcher"] != "srun" and launch.get("accelerator") != "cpu":
        assert f"gpu={launch['ranks_per_node']}" in printed and "gpu=1" in printed
    else:
        assert ", gpu=" not in printed  # tasks_per_gpu= is of srun
    evaluated, per_card = WorkflowStudy(config), config["eval"].get("per_card", False)
    assert counts["evaluate"] == sum(len(evaluated.cards_of(run)) if per_card else 1 for run in evaluated.models)
    assert per_card == ("their cells will be empty" in printed)


@pytest.mark.slow
def test_a_study_is_planned_in_another_folder(clone: Path, tmp_path: Path) -> None:
    command = ["-m", "snakemake", "-s", str(clone / "Snakefile"), "--directory", str(tmp_path), "--cores", "2", "-n"]
    done = run_well(*command, variables=environment_of(clone), cwd=tmp_path)
    assert job_counts(done.stdout + done.stderr)["summary"] == 1


@pytest.mark.slow
def test_a_study_is_a_module_of_another_workflow(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text(
        f"module filip:\n    snakefile: {str(clone / 'Snakefile')!r}\nuse rule * from filip as filip_*\n"
        "import os\nprint('jobs import', os.environ['PYTHONPATH'].split(':')[0])\n"
        "rule all:\n    default_target: True\n    input: rules.filip_all.input\n"
    )
    variables = {**environment_of(clone), "PYTHONPATH": ""}
    done = run_well("-m", "snakemake", "--cores", "2", "-n", variables=variables, cwd=tmp_path)
    assert f"jobs import {clone}" in done.stdout
    assert job_counts(done.stdout + done.stderr)["filip_summary"] == 1


@pytest.mark.slow
def test_jobs_share_each_stage_of_each_source(clone: Path, tmp_path: Path) -> None:
    config = study("base") | {"data_dir": str(tmp_path / "datasets"), "sources": ["cc3m", "mine"]}
    config |= {"fine_tune": {}, "tables": {"retrieval": list(study("base")["runs"])}, "data": {"parts": 5, "score": {}}}
    (tmp_path / "own").mkdir()
    (clone / "data/mine.yaml").write_text(f"title: T\nimages: {tmp_path}/own\nback_translation: null\n")
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config))
    counts = job_counts(planned(clone, tmp_path / "base.yaml"))
    parts = {name: number for name, number in counts.items() if name.endswith("_part")}
    stages = ("url_list", "text_rules", "download", "ingest")
    assert parts == {"translate_part": 10, "score_part": 10, **{f"{name}_part": 5 for name in stages}}


@pytest.mark.slow
def test_a_study_that_is_not_there_or_wrong_is_one_sentence(clone: Path) -> None:
    def said(config: str) -> str:
        command, variables = study_command(cwd=clone, config=Path(config))
        done = subprocess.run(command, cwd=clone, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        return done.stderr

    (line,) = said("nosuch").splitlines()
    assert line.startswith("error: there is no study 'nosuch'") and "demo_ablation" in line
    config = yaml.safe_load((clone / "workflow/config/demo.yaml").read_text())
    (clone / "wrong.yaml").write_text(yaml.safe_dump(config | {"sources": ["nowhere"]}))
    printed = said("wrong.yaml")
    assert "nowhere" in printed and printed.count("error:") == 1
    assert not re.search("Traceback|WorkflowError|Snakefile", printed)


PROFILE = yaml.safe_load((ROOT / "workflow/profiles/slurm/profile.yaml").read_text())


def test_every_rule_to_which_the_profile_of_a_cluster_gives_resources_exists() -> None:
    """Snakemake ignores a name that is no rule's."""
    files = [ROOT / "Snakefile", *(ROOT / "workflow/rules").glob("*.smk")]
    declared = r"^ *(?:rule|checkpoint|use rule \w+ as) (\w+)"
    rules = {name for file in files for name in re.findall(declared, file.read_text(), re.MULTILINE)}
    assert {*PROFILE["set-resources"], *PROFILE["set-threads"]} <= rules


@pytest.mark.slow
def test_a_dry_run_on_a_cluster_shows_time_and_memory_of_each_job(clone: Path) -> None:
    given = ("--configfile", "workflow/config/base.yaml", "--profile", "workflow/profiles/slurm", "-n")
    done = run_well("-m", "snakemake", *given, variables=environment_of(clone), cwd=clone)
    jobs = re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*?)^\[", done.stdout + "[", re.MULTILINE | re.DOTALL)
    granted: dict[str, tuple[int, int]] = {}
    for rule, text in jobs:
        numbers = re.search(r"mem_mb=(\d+).* runtime=(\d+)", text)
        assert numbers, text
        granted[rule] = int(numbers[2]), int(numbers[1])  # minutes, megabytes
    # ImageNet's linear probe: 390 hours of a core and 34 GB, see the profile. A dry run shows no threads.
    minutes, megabytes = granted["evaluate"]
    assert minutes * PROFILE["set-threads"]["evaluate"] > 390 * 60 and megabytes > 34_000
    assert granted["tables"] == (120, 8000)
    assert granted["pretrain"][0] == 2880 and granted["pretrain"][1] > 8000
    assert {"download", "text_rules", "translate", "manifest", "fine_tune"} <= granted.keys()
