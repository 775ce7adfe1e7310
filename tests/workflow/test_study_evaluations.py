"""The evaluations of a study, their options, and what its report shows."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from filip.command import compose_config
from filip.errors import UserError
from filip.eval.pictures.scenes import SceneSheet
from filip.explore.export import ExplorerExport
from workflow.study import ROOT, WorkflowStudy


def test_every_seed_is_evaluated(demo: dict) -> None:
    study = WorkflowStudy({**demo, "seeds": 3})
    for protocol in ("zero_shot", "retrieval"):
        assert {"filip", "filip_s1", "filip_s2"} <= set(study.evaluated_by(protocol))
    assert study.evaluated_by("alignment")[:4] == ["clip", "clip_s1", "clip_s2", "filip"]


def test_a_protocol_of_one_seed_evaluates_the_first_training_of_each_run(demo: dict) -> None:
    demo["eval"]["one_seed"] = ["alignment"]
    study = WorkflowStudy({**demo, "seeds": 3})
    assert study.evaluated_by("alignment") == demo["tables"]["alignment"]
    assert study.replicas("filip", "alignment", "retrieval") == ["filip"]
    assert study.replicas("filip", "retrieval") == ["filip", "filip_s1", "filip_s2"]


def test_a_run_whose_accuracy_is_shown_is_evaluated(demo: dict) -> None:
    demo["tables"] = {"alignment": ["filip"]}
    study = WorkflowStudy(demo)
    assert study.evaluated_by("zero_shot") == ["clip", "filip"]
    assert study.evaluated == ["clip", "filip"]


def job(run: str, card: str = "") -> SimpleNamespace:
    """Return the wildcards of a job."""
    return SimpleNamespace(run=run, card=card)


def test_a_job_evaluates_all_cards_of_a_protocol_or_one(demo: dict) -> None:
    """One key decides; the demo, whose evaluations are shorter than a start of Python, keeps them together."""
    together = WorkflowStudy(demo)
    assert together.job("zero_shot") == "{run}/zero_shot"
    inputs = together.job_inputs("zero_shot", job("clip"))
    assert inputs["cards"] == [f"eval/{name}.yaml" for name in demo["eval"]["zero_shot"]]
    assert inputs["data"] == [] and inputs["corpus"] == ["results/demo/corpus/corpus.json"]
    assert "missing" not in together.job_arguments("zero_shot", job("clip"))

    demo["eval"]["per_card"] = True
    single = WorkflowStudy(demo)
    assert single.job("zero_shot") == "{run}/zero_shot/{card}"
    assert single.job_log("zero_shot") == "zero_shot/{run}/{card}"
    assert single.job_inputs("zero_shot", job("clip", "demo_food"))["cards"] == ["eval/demo_food.yaml"]
    given = shlex.split(single.job_arguments("zero_shot", job("clip", "demo_food")))
    assert "data=[eval/demo_food.yaml]" in given and "missing=skip" in given
    sheet = single.sheet_arguments(job("clip"))
    assert "data=[eval/demo_fluent.yaml]" in sheet and "missing=skip" in sheet and "protocols" not in sheet
    assert single.sheet_inputs(job("clip"))["cards"] == ["eval/demo_fluent.yaml"]
    parts = single.parts("clip", "zero_shot")
    assert parts == [f"results/demo/eval/clip/zero_shot/{n}.json" for n in demo["eval"]["zero_shot"]]


def test_data_that_appear_later_become_an_input_and_are_named_until_then(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "workflow/config/base.yaml").read_text())
    config["eval"]["root"] = str(tmp_path)
    config["runs"]["again"] = config["runs"]["filip_base"]
    config["tables"]["alignment"] = ["filip_base", "again"]
    (tmp_path / "wds_vtab-cifar10").mkdir()
    study = WorkflowStudy(config)
    assert "cifar10" not in study.missing_data() and "imagenet" in study.missing_data()
    there = study.job_inputs("zero_shot", job("filip_base", "cifar10"))["data"]
    assert there == [str(tmp_path / "wds_vtab-cifar10")]
    assert study.job_inputs("zero_shot", job("filip_base", "imagenet"))["data"] == []
    assert not study.draws_side_by_side("alignment")
    (tmp_path / study.data_of("imagenet").name).mkdir()
    assert study.draws_side_by_side("alignment")


def test_a_fine_tuning_is_told_what_it_was_tuned_on(demo: dict) -> None:
    study = WorkflowStudy(demo)
    assert "retrieval.fine_tuned_on=demo" in shlex.split(study.job_arguments("retrieval", job("filip_ft")))
    assert "fine_tuned_on" not in study.job_arguments("retrieval", job("filip"))


def test_peers_are_evaluated_by_open_clip_and_wait_for_no_training(demo: dict) -> None:
    demo["peers"] = {"theirs": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    study = WorkflowStudy(demo)
    assert "theirs" in study.evaluated_by("zero_shot") and "theirs" not in study.evaluated_by("alignment")
    assert study.model_file("theirs") == [] and study.model("theirs") == "open_clip:ViT-B-32"
    assert study.model_file("clip") == [study.model("clip")] == ["results/demo/models/clip.safetensors"]
    assert "theirs" not in study.evaluated


def test_a_study_sets_the_options_of_its_evaluations(demo: dict) -> None:
    demo["eval"] |= {
        "stem_maps": "maps",
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
    assert ours[:2] == ["protocols=[zero_shot]", "model=results/demo/models/clip.safetensors"]
    assert ours[3].startswith("data=[eval/")
    assert ours[4:] == ["stem_maps=maps", "prompts=eval/prompts.yaml", "workers=3", "precision=bf16"]
    theirs = shlex.split(study.evaluation_arguments("b32", "zero_shot"))
    assert theirs[4:] == ["prompts=eval/prompts.yaml", "workers=1", "precision=bf16"]
    assert shlex.split(study.evaluation_arguments("b32", "selection"))[4:] == ["tokens=true"]


def test_a_peer_is_scored_by_its_own_protocol_unless_the_study_names_prompts(demo: dict) -> None:
    demo["eval"] |= {"zero_shot": ["cifar10", "sun397"], "loaders": {"sun397": "torchvision"}}
    demo["peers"] = {"b32": {"label": "B/32", "model": "open_clip:ViT-B-32:openai"}}
    study = WorkflowStudy(demo)
    given = shlex.split(study.evaluation_arguments("b32", "zero_shot"))
    assert given[3:] == ["data=[eval/cifar10.yaml,eval/sun397.yaml@torchvision]", "prompts=auto"]
    assert study.prompt_file("b32", "zero_shot") == ["eval/prompts.yaml", "eval/prompts_clip.yaml"]
    assert study.prompt_file("clip", "zero_shot") == ["eval/prompts.yaml"]
    assert study.prompt_file("clip", "selection") == []
    demo["peers"]["b32"]["eval"] = {"zero_shot": ["prompts=eval/prompts.yaml", "tokens=true"]}
    given = shlex.split(WorkflowStudy(demo).evaluation_arguments("b32", "zero_shot"))
    assert given[4:] == ["prompts=eval/prompts.yaml", "tokens=true"]


def test_labels_reach_the_commands_that_draw_models_beside_each_other(demo: dict) -> None:
    demo["runs"]["clip"]["label"] = "CLIP, the baseline's"
    (argument,) = shlex.split(WorkflowStudy(demo).quoted_labels("scene_pointing"))
    config = compose_config(SceneSheet, ["models=[a,b]", "root=x", "out=y", argument])
    assert config.labels == ["CLIP, the baseline's", "FILIP", "FILIP, smooth"]


def test_the_explorer_shows_runs_and_a_card_that_exist(demo: dict) -> None:
    explorer = WorkflowStudy(demo).explorer
    assert explorer is not None and explorer["weights"] == explorer["models"]
    assert explorer["models"] == [f"results/demo/models/{run}.safetensors" for run in ("clip", "filip")]
    assert compose_config(
        ExplorerExport, [shlex.split(explorer["labels"])[0], "models=[m]", "images=i", "out=o"]
    ).labels == ["CLIP", "FILIP"]
    for change, named in (({"models": ["whale"]}, "explorer.models"), ({"card": "no_such"}, "explorer.card")):
        with pytest.raises(UserError, match=named):
            WorkflowStudy({**demo, "explorer": {**demo["explorer"], **change}})
    del demo["explorer"]
    assert WorkflowStudy(demo).explorer is None
