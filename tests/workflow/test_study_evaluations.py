"""The evaluations of a study, their options, and what its report shows."""

import shlex
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from filip.cli.command import compose_config
from filip.common.errors import UserError
from filip.explore.export import ExplorerExport
from workflow.study import ROOT, WorkflowStudy


def test_a_protocol_of_one_seed_evaluates_the_first_training_of_each_run(demo: dict) -> None:
    demo["eval"]["one_seed"] = ["selection"]
    study = WorkflowStudy({**demo, "seeds": 3})
    assert study.evaluated_by("selection") == demo["tables"]["selection"]
    assert study.replicas("filip", "selection", "retrieval") == ["filip"]
    assert study.replicas("filip", "retrieval") == ["filip", "filip_s1", "filip_s2"]


def test_a_run_whose_accuracy_is_shown_is_evaluated(demo: dict) -> None:
    demo["tables"] = {"selection": ["filip"]}
    study = WorkflowStudy(demo)
    assert study.evaluated_by("zero_shot") == ["clip", "filip"]
    assert study.evaluated == ["clip", "filip"]


def job(run: str, card: str = "") -> SimpleNamespace:
    return SimpleNamespace(run=run, card=card)


def options(study: WorkflowStudy, run: str, card: str | None = None) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in shlex.split(study.evaluation_arguments(run, card)))


def test_a_job_evaluates_a_model_by_all_protocols_or_on_one_card(demo: dict) -> None:
    """One key decides."""
    together = WorkflowStudy(demo)
    assert together.job == "{run}" and together.evaluations() == together.models
    inputs = together.job_inputs(job("clip"))
    assert {f"eval/{name}.yaml" for name in (*demo["eval"]["zero_shot"], "demo_pointing")} <= set(inputs["cards"])
    assert inputs["data"] == [] and inputs["corpus"] == ["results/demo/corpus/corpus.json"]
    given = options(together, "clip")
    assert "missing" not in given and {"selection", "retrieval"} <= set(given["protocols"].strip("[]").split(","))
    assert "linear_probe:[demo_skin_tone]" in given["only"]

    demo["eval"]["per_card"] = True
    single = WorkflowStudy(demo)
    assert single.job == "{run}/{card}" and "clip/demo_food" in single.evaluations()
    assert single.job_inputs(job("clip", "demo_food"))["cards"] == ["eval/demo_food.yaml"]
    given = options(single, "clip", "demo_food")
    assert (given["protocols"], given["data"], given["missing"]) == ("[zero_shot]", "[eval/demo_food.yaml]", "skip")
    assert given["only"] == "{zero_shot:[demo_food]}"


def test_data_that_appear_later_become_an_input_and_are_named_until_then(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "workflow/config/base.yaml").read_text())
    config["eval"]["root"] = str(tmp_path)
    (tmp_path / "wds_vtab-cifar10").mkdir()
    study = WorkflowStudy(config)
    assert "cifar10" not in study.missing_data() and "imagenet" in study.missing_data()
    there = study.job_inputs(job("filip_base", "cifar10"))["data"]
    assert there == [str(tmp_path / "wds_vtab-cifar10")]
    assert study.job_inputs(job("filip_base", "imagenet"))["data"] == []
    assert study.shown("alignment") is None
    (tmp_path / study.data_of("imagenet").name).mkdir()
    assert study.shown("alignment")["models"] == ["results/base/models/filip_base.safetensors"]


def test_a_fine_tuning_is_told_what_it_was_tuned_on(demo: dict) -> None:
    study = WorkflowStudy(demo)
    assert "retrieval.fine_tuned_on=demo" in shlex.split(study.evaluation_arguments("filip_ft"))
    assert "fine_tuned_on" not in study.evaluation_arguments("filip")


def test_peers_are_evaluated_by_open_clip_and_wait_for_no_training(demo: dict) -> None:
    demo["peers"] = {"theirs": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    study = WorkflowStudy(demo)
    assert "theirs" in study.evaluated_by("zero_shot") and "theirs" not in study.evaluated_by("scene_pointing")
    assert study.model_file("theirs") == [] and study.model("theirs") == "open_clip:ViT-B-32"
    assert study.model_file("clip") == [study.model("clip")] == ["results/demo/models/clip.safetensors"]
    assert "theirs" not in study.evaluated


def test_a_study_sets_the_options_of_its_evaluations(demo: dict) -> None:
    demo["eval"] |= {
        "overrides": {"all": ["workers=3", "precision=bf16"], "zero_shot": ["ensemble=score"]},
        "prompts": "eval/prompts.yaml",
    }
    demo["peers"] = {
        "b32": {"label": "B/32", "model": "hf:some/clip", "eval": {"all": ["workers=1"], "retrieval": ["ties=first"]}}
    }
    study = WorkflowStudy(demo)
    ours, theirs = options(study, "clip"), options(study, "b32")
    shared = {"prompts": "eval/prompts.yaml", "precision": "bf16", "zero_shot.ensemble": "score"}
    assert {**shared, "workers": "3"}.items() <= ours.items() and "retrieval.ties" not in ours
    assert {**shared, "workers": "1", "retrieval.ties": "first"}.items() <= theirs.items()


def test_a_peer_is_scored_by_its_own_protocol_unless_the_study_names_prompts(demo: dict) -> None:
    demo["eval"] |= {"zero_shot": ["cifar10", "sun397"]}
    demo["peers"] = {"b32": {"label": "B/32", "model": "open_clip:ViT-B-32:openai"}}
    study = WorkflowStudy(demo)
    given = options(study, "b32")
    assert given["data"].startswith("[eval/cifar10.yaml,eval/sun397.yaml,") and given["prompts"] == "auto"
    assert study.prompt_file("b32") == ["eval/prompts.yaml", "eval/prompts_clip.yaml"]
    assert study.prompt_file("clip") == ["eval/prompts.yaml"]
    demo["peers"]["b32"]["eval"] = {"all": ["prompts=eval/prompts.yaml", "tokens=true"]}
    given = options(WorkflowStudy(demo), "b32")
    assert (given["prompts"], given["tokens"]) == ("eval/prompts.yaml", "true")


def test_the_explorer_shows_runs_and_a_card_that_exist(demo: dict) -> None:
    explorer = WorkflowStudy(demo).shown("explorer")
    assert explorer is not None and explorer["weights"] == explorer["models"]
    assert explorer["models"] == [f"results/demo/models/{run}.safetensors" for run in ("clip", "filip")]
    assert compose_config(
        ExplorerExport, [shlex.split(explorer["labels"])[0], "models=[m]", "images=i", "out=o"]
    ).labels == ["CLIP", "FILIP"]
    for key, change in product(("alignment", "explorer"), ({"models": ["whale"]}, {"card": "no_such"})):
        with pytest.raises(UserError, match=f"{key}.{next(iter(change))}"):
            WorkflowStudy({**demo, key: {**demo[key], **change}})
    del demo["explorer"]
    assert WorkflowStudy(demo).shown("explorer") is None
