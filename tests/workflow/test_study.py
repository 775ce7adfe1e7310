"""workflow/study.py without Snakemake: config checks, commands and paths."""

import copy
from pathlib import Path

import pytest
import yaml

from workflow.study import ROOT, Study, StudyError, check_config

CONFIGS = sorted((ROOT / "workflow" / "config").glob("*.yaml"))


@pytest.fixture
def demo() -> dict:
    return yaml.safe_load((ROOT / "workflow" / "config" / "demo.yaml").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_study_passes_its_own_checks_and_composes_every_training(path: Path) -> None:
    study = Study(yaml.safe_load(path.read_text()))
    assert study.name == path.stem
    for run in [*study.runs, *study.fine_tunes, *study.efficiency_rows]:
        assert study.run_dir(run).startswith(f"results/{study.name}/runs/{run}-")
    for source in study.sources:
        assert (ROOT / study.card(source)).is_file()
    for kind in ("zero_shot", "retrieval", "alignment"):
        for card in study.cards(kind):
            assert (ROOT / card).is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("runs"), "runs"),
        (lambda c: c.update(runz={}), "runz"),
        (lambda c: c["demo"].update(port="many"), "demo.port"),
        (lambda c: c["launch"].update(launcher="mpirun"), "launch.launcher"),
        (lambda c: c["runs"]["clip"].update(overrides="a=b"), "runs.clip.overrides"),
        (lambda c: c["fine_tune"]["filip_ft"].update({"from": "nobody"}), "fine_tune.filip_ft.from"),
        (lambda c: c["tables"]["zero_shot"].append("nobody"), "tables.zero_shot"),
        (lambda c: c["efficiency"]["orig"].update(accuracy_of="nobody"), "efficiency.orig.accuracy_of"),
    ],
)
def test_a_broken_config_is_refused_with_the_key(demo: dict, change, named: str) -> None:
    change(demo)
    with pytest.raises(StudyError) as caught:
        check_config(demo)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_that_the_trainer_does_not_know_is_refused(demo: dict) -> None:
    demo["runs"]["clip"]["overrides"].append("no_such_key=1")
    with pytest.raises(StudyError, match="no_such_key"):
        Study(demo).run_dir("clip")


def test_the_run_folder_follows_what_is_trained_and_nothing_else(demo: dict) -> None:
    before = Study(demo).run_dir("filip")
    ranks = copy.deepcopy(demo)
    ranks["launch"]["ranks_per_node"] = 4  # another world size continues the same run
    assert Study(ranks).run_dir("filip") == before
    changed = copy.deepcopy(demo)
    changed["runs"]["filip"]["overrides"].append("seed=7")
    assert Study(changed).run_dir("filip") != before


def test_launchers(demo: dict) -> None:
    assert Study(demo).launch().command() == (
        "DS_ACCELERATOR=cpu deepspeed --num_gpus 2 --master_port 29500 --no_local_rank --module filip.train"
    )
    demo["launch"] = {"launcher": "deepspeed", "nodes": 2, "ranks_per_node": 8, "hostfile": "hosts"}
    assert "--hostfile hosts --num_nodes 2 --num_gpus 8 --master_port 29500" in Study(demo).launch().command()
    demo["launch"] = {"launcher": "srun", "nodes": 24, "ranks_per_node": 8, "resources": {"runtime": 100}}
    study = Study(demo)
    assert study.launch().command() == "srun python -m filip.train"
    assert study.train_resources() == {"nodes": 24, "mpi": "srun", "tasks_per_node": 8, "runtime": 100}


def test_a_fine_tuning_inherits_the_architecture_of_its_run(demo: dict) -> None:
    arguments = Study(demo).train_arguments("clip_ft")
    assert "model.interaction=pooled" in arguments
    assert "init_from=results/demo/models/clip.safetensors" in arguments


def test_seeds_repeat_every_run_and_are_averaged_into_its_row(demo: dict) -> None:
    once, thrice = Study(demo), Study({**demo, "seeds": 3})
    assert set(thrice.runs) == {f"{run}{end}" for run in once.runs for end in ("", "_s1", "_s2")}
    assert thrice.config["replicas"]["filip"] == ["filip_s1", "filip_s2"]
    assert "seed=2" in thrice.train_arguments("filip_s2")
    assert thrice.run_dir("filip") == once.run_dir("filip"), "the first seed is the run that there is already"
    for protocol in ("zero_shot", "retrieval"):
        assert {"clip_aug", "clip_aug_s1", "clip_aug_s2"} <= set(thrice.evaluated_by(protocol))
    assert thrice.evaluated_by("alignment") == ["clip", "clip_s1", "clip_s2", "filip", "filip_s1", "filip_s2"]


def test_peers_are_evaluated_by_open_clip_and_wait_for_no_training(demo: dict) -> None:
    demo["peers"] = {"theirs": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    study = Study(demo)
    assert "theirs" in study.evaluated_by("zero_shot") and "theirs" not in study.evaluated_by("alignment")
    assert study.model_file("theirs") == [] and study.model("theirs") == "open_clip:ViT-B-32"
    assert study.model_file("clip") == [study.model("clip")] == ["results/demo/models/clip.safetensors"]
    demo["peers"] = {"clip": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    with pytest.raises(StudyError, match=r"peers\.clip"):
        Study(demo)


def test_as_many_translating_jobs_as_the_download_has_shards_for(demo: dict, tmp_path: Path) -> None:
    for shards, parts in ((1, 0), (8, 0), (9, 2), (1242, 156)):
        (tmp_path / "download.json").write_text(f'{{"notes": {{"shards": {shards}}}}}')
        assert len(Study(demo).translation_parts("demo", tmp_path / "download.json")) == parts
    assert (
        Study(demo)
        .translation_parts("demo", tmp_path / "download.json")[-1]
        .endswith("translated/155-of-156.done")
    )


def test_a_training_on_cpus_takes_the_whole_machine(demo: dict) -> None:
    assert Study(demo).train_threads(2) == 2 and Study(demo).train_threads(16) == 16
    demo["launch"] = {"launcher": "deepspeed", "ranks_per_node": 8}
    assert Study(demo).train_threads(96) == 8
