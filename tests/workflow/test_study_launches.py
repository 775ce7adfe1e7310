"""How a study's trainings are started: launchers, resources of a cluster's jobs, threads, jobs of a dead Snakemake."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from filip.common.errors import UserError
from filip.train.costs import count
from filip.train.engine import resolve_batching
from workflow.launch import earlier_jobs
from workflow.study import ROOT, WorkflowStudy


@pytest.mark.parametrize(
    ("launch", "command"),
    [
        (
            {"launcher": "deepspeed", "ranks_per_node": 2, "accelerator": "cpu"},
            "DS_ACCELERATOR=cpu deepspeed --num_gpus 2 --master_port 30251 --module filip.train",
        ),
        (
            {"launcher": "deepspeed", "ranks_per_node": 1, "accelerator": "cpu"},
            "DS_ACCELERATOR=cpu python -m filip.train",
        ),
        (
            {"launcher": "deepspeed", "ranks_per_node": 8, "master_port": 29700},
            "python -m workflow.gpus 8 port=29700 -- deepspeed --include localhost:@gpus --master_port @port "
            "--module filip.train",
        ),
        (
            {"launcher": "srun", "nodes": 16, "ranks_per_node": 8, "cpus_per_rank": 5},
            "srun --nodes=16 --ntasks-per-node=8 --cpus-per-task=5 --kill-on-bad-exit=1 python -m filip.train",
        ),
    ],
    ids=["deepspeed", "one process", "deepspeed on GPUs", "srun"],
)
def test_the_launcher_decides_how_a_training_starts(demo: dict, launch: dict, command: str) -> None:
    assert WorkflowStudy({**demo, "launch": launch}).launch("filip").command() == command


def test_trainings_that_run_at_once_meet_at_ports_of_their_own(demo: dict) -> None:
    study = WorkflowStudy(demo)
    ports = [study.launch(name).master_port for name in (*study.trained, *study.efficiency)]
    assert len(set(ports)) == len(ports)


def test_trainings_and_evaluations_of_a_server_ask_for_gpus_of_their_own(demo: dict) -> None:
    """On CPUs and where a scheduler gives GPUs, they do not."""
    assert WorkflowStudy(demo).own_gpu == "" and WorkflowStudy(demo).evaluation_resources == {}
    assert "gpu" not in WorkflowStudy(demo).train_resources(submits=lambda: False)
    del demo["launch"]["accelerator"]
    demo["launch"]["ranks_per_node"] = 8
    study = WorkflowStudy(demo)
    resources = study.train_resources(submits=lambda: False)
    assert resources["gpu"](["filip"]) == 8 and study.evaluation_resources == {"gpu": 1}
    assert study.own_gpu == "python -m workflow.gpus 1 -- "
    demo["eval"]["resources"] = {"gres": "gpu:1"}
    assert WorkflowStudy(demo).own_gpu == ""
    demo["launch"] |= {"launcher": "srun", "resources": {"gres": "gpu:8"}}
    assert "gpu" not in WorkflowStudy(demo).train_resources(submits=lambda: False)


def test_a_training_on_a_cluster_asks_for_its_nodes_and_tasks(demo: dict) -> None:
    demo["launch"] = {"launcher": "srun", "nodes": 8, "ranks_per_node": 8, "resources": {"runtime": 100}}
    demo["launch"]["resources"]["slurm_extra"] = "--exclusive"
    tuned = next(iter(demo["fine_tune"]))
    demo["fine_tune"][tuned]["launch"] = {"nodes": 2, "resources": {"runtime": 10}}
    resources = WorkflowStudy(demo).train_resources(submits=lambda: False)

    def asked(training: str) -> dict:
        return {name: value([training]) for name, value in resources.items()}

    common = {"mpi": "srun", "tasks_per_node": 8, "tasks_per_gpu": 0}
    common["slurm_extra"] = "--signal=USR1@600 --exclusive"  # as sbatch reads it: no quotes of a shell
    assert asked("filip") == {"nodes": 8, "runtime": 100, "mem_mb": 96_000, **common}
    assert asked(tuned) == {"nodes": 2, "runtime": 10, "mem_mb": 96_000, **common}
    demo["launch"]["resources"]["mem_mb"] = 123
    stated = WorkflowStudy(demo).train_resources(submits=lambda: False)
    assert stated["mem_mb"](["filip"]) == 123


def test_the_trainer_is_told_how_many_ranks_there_should_be(demo: dict) -> None:
    tuned = next(iter(demo["fine_tune"]))
    demo["fine_tune"][tuned]["launch"] = {"ranks_per_node": 4}
    study = WorkflowStudy(demo)
    assert "world_size=2" in study.train_arguments("filip") and "world_size=4" in study.train_arguments(tuned)


@pytest.mark.parametrize("study", ["ablation", "base", "large"])
def test_every_training_of_the_paper_s_studies_fits_its_gpus(study: str) -> None:
    """Each fits 32 GB of a V100, counted by the memory plan at its own launch, with a tenth left over."""
    result = WorkflowStudy(yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text()))
    for name in [*result.trained, *result.efficiency]:
        config, ranks = copy.deepcopy(result.resolved(name)), result.launch(name).world_size
        if name in result.fine_tunes:  # the trainer takes the architecture from the weights
            model = result.resolved(result.fine_tunes[name]["from"]).model
            model = replace(model, gradient_checkpointing=config.model.gradient_checkpointing)
            config.model = copy.deepcopy(model)
        config.model.image.image_size = config.image_size or config.model.image.image_size
        plan = count(config.model, config, resolve_batching(config, ranks), ranks)
        assert plan.total < 0.9 * 32e9, (name, plan.lines())


def test_jobs_of_a_dead_snakemake_that_make_the_same_training_are_found(tmp_path: Path) -> None:
    listing = "\n".join(
        [
            f"7|{tmp_path}|rule_pretrain_wildcards_filip",
            f"8|{tmp_path}|rule_pretrain_wildcards_filip_ft",
            f"9|{tmp_path}/other|rule_pretrain_wildcards_filip",
            f"10|{tmp_path}|rule_evaluate_wildcards_filip",
            f"11|{tmp_path}|(null)",
        ]
    )
    assert earlier_jobs(listing, "filip", tmp_path) == ["7"]


def test_a_silent_scheduler_is_asked_only_to_submit(
    demo: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue without its controller waits for good: a dry run must not."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexec sleep 600\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("workflow.launch.ANSWERS_WITHIN", 0.5)
    demo["launch"] = {"launcher": "srun", "ranks_per_node": 8}
    extra = WorkflowStudy(demo).train_resources(submits=lambda: False)["slurm_extra"]
    assert extra(["filip"]) == "--signal=USR1@600"
    extra = WorkflowStudy(demo).train_resources(submits=lambda: True)["slurm_extra"]
    with pytest.raises(UserError, match=r"no answer in 0.5 s.*'filip' may be in training already"):
        extra(["filip"])
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        extra(["filip"])


def test_trainings_on_cpus_share_the_machine(demo: dict) -> None:
    demo["launch"] = {"launcher": "deepspeed", "ranks_per_node": 1, "side_by_side": 2, "accelerator": "cpu"}
    launch = WorkflowStudy(demo).launch("filip")
    assert [launch.threads(lambda cores=cores: cores) for cores in (1, 2, 16)] == [1, 1, 8]
    alone = replace(launch, ranks_per_node=2, side_by_side=1)
    assert alone.threads(lambda: 2) == 2 and alone.threads(lambda: 16) == 16
    demo["launch"] = {"launcher": "deepspeed", "ranks_per_node": 8}
    assert WorkflowStudy(demo).launch("filip").threads(lambda: 96) == 8


def test_all_efficiency_rows_are_one_start_of_their_own_module(demo: dict) -> None:
    study = WorkflowStudy(demo)
    assert study.efficiency_launch.command("filip.study.efficiency").endswith("--module filip.study.efficiency")
    assert study.gathered == "2048"
    del demo["efficiency_train"]["gathered"]
    assert WorkflowStudy(demo).gathered == "null"
    assert study.train_resources(lambda: False, next(iter(study.efficiency)))["nodes"](None) == 1
