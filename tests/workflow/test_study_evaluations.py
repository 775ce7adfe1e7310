"""What a study evaluates, with which options, and what its report shows."""

import shlex

import pytest

from filip.command import compose_config
from filip.errors import UserError
from filip.eval.scene_sheet import SceneSheet
from filip.explore.export import Export
from workflow.study import WorkflowStudy


def test_every_seed_is_evaluated(demo: dict) -> None:
    study = WorkflowStudy({**demo, "seeds": 3})
    for protocol in ("zero_shot", "retrieval"):
        assert {"filip", "filip_s1", "filip_s2"} <= set(study.evaluated_by(protocol))
    assert study.evaluated_by("alignment") == ["clip", "clip_s1", "clip_s2", "filip", "filip_s1", "filip_s2"]


def test_a_run_whose_accuracy_is_shown_is_evaluated(demo: dict) -> None:
    demo["tables"] = {"alignment": ["filip"]}
    study = WorkflowStudy(demo)
    assert study.evaluated_by("zero_shot") == ["clip", "filip"]
    assert study.evaluated == ["clip", "filip"]


def test_peers_are_evaluated_by_open_clip_and_wait_for_no_training(demo: dict) -> None:
    demo["peers"] = {"theirs": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    study = WorkflowStudy(demo)
    assert "theirs" in study.evaluated_by("zero_shot") and "theirs" not in study.evaluated_by("alignment")
    assert study.model_file("theirs") == [] and study.model("theirs") == "open_clip:ViT-B-32"
    assert study.model_file("clip") == [study.model("clip")] == ["results/demo/models/clip.safetensors"]
    assert "theirs" not in study.evaluated


def test_a_study_sets_the_options_of_its_evaluations(demo: dict) -> None:
    demo["eval"] |= {
        "overrides": {"zero_shot": ["workers=3", "precision=bf16"]},
        "prompts": "eval/prompts.yaml",
    }
    demo["peers"] = {
        "b32": {
            "label": "B/32",
            "model": "hf:some/clip",
            "eval": {"zero_shot": ["workers=1"], "selection": ["tokens=true"]},
        }
    }
    study = WorkflowStudy(demo)
    ours = shlex.split(study.evaluation_arguments("clip", "zero_shot"))
    assert ours[0] == "model=results/demo/models/clip.safetensors" and ours[2].startswith("cards=[eval/")
    assert ours[3:] == ["prompts=eval/prompts.yaml", "workers=3", "precision=bf16"]
    theirs = shlex.split(study.evaluation_arguments("b32", "zero_shot"))
    assert theirs[3:] == ["prompts=eval/prompts.yaml", "ensemble=embedding", "workers=1", "precision=bf16"]
    assert shlex.split(study.evaluation_arguments("b32", "selection"))[3:] == ["tokens=true"]


def test_a_peer_is_scored_as_it_was_published_where_clip_has_prompts(demo: dict) -> None:
    demo["eval"] |= {"zero_shot": ["cifar10", "sun397"], "loaders": {"sun397": "torchvision"}}
    demo["peers"] = {"b32": {"label": "B/32", "model": "open_clip:ViT-B-32:openai"}}
    study = WorkflowStudy(demo)
    given = shlex.split(study.evaluation_arguments("b32", "zero_shot"))
    assert given[2:] == [
        "cards=[eval/cifar10.yaml,eval/sun397.yaml@torchvision]",
        "prompts=eval/prompts_clip.yaml",
        "ensemble=embedding",
    ]
    assert study.prompt_file("b32", "zero_shot") == ["eval/prompts_clip.yaml"]
    assert study.prompt_file("clip", "zero_shot") == ["eval/prompts.yaml"]
    assert study.prompt_file("clip", "selection") == []
    demo["peers"]["b32"]["eval"] = {"zero_shot": ["prompts=eval/prompts.yaml", "tokens=true"]}
    given = shlex.split(WorkflowStudy(demo).evaluation_arguments("b32", "zero_shot"))
    assert given[3:] == ["prompts=eval/prompts.yaml", "ensemble=score", "tokens=true"]


def test_labels_reach_the_commands_that_draw_models_beside_each_other(demo: dict) -> None:
    demo["runs"]["clip"]["label"] = "CLIP, the baseline's"
    (argument,) = shlex.split(WorkflowStudy(demo).quoted_labels("scene_pointing"))
    config = compose_config(SceneSheet, ["models=[a,b]", "root=x", "picture=y", argument])
    assert config.labels == ["CLIP, the baseline's", "FILIP"]


def test_the_explorer_shows_runs_and_a_card_that_exist(demo: dict) -> None:
    explorer = WorkflowStudy(demo).explorer
    assert explorer is not None and explorer["weights"] == explorer["models"]
    assert explorer["models"] == [f"results/demo/models/{run}.safetensors" for run in ("clip", "filip")]
    assert compose_config(
        Export, [shlex.split(explorer["labels"])[0], "models=[m]", "images=i", "out=o"]
    ).labels == [
        "CLIP",
        "FILIP",
    ]
    for change, named in (({"models": ["whale"]}, "explorer.models"), ({"card": "no_such"}, "explorer.card")):
        with pytest.raises(UserError, match=named):
            WorkflowStudy({**demo, "explorer": {**demo["explorer"], **change}})
    del demo["explorer"]
    assert WorkflowStudy(demo).explorer is None
