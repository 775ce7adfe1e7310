"""A wrong config of a study is refused before any job."""

from pathlib import Path

import pytest
import yaml

from filip.common.errors import UserError
from filip.eval.encoders import backends
from filip.study import check
from filip.study.config_checks import check_config
from workflow.study import ROOT, WorkflowStudy


@pytest.mark.parametrize(
    ("key", "name", "value"), [("demo", "port", 70_000), ("demo", "limit", 3), ("explorer", "count", 0)]
)
def test_a_value_that_a_command_would_refuse_is_refused_before_any_job(
    demo: dict, key: str, name: str, value: int
) -> None:
    demo[key][name] = value
    with pytest.raises(UserError, match=f"^study config, key {key}.{name}={value} must be at"):
        WorkflowStudy(demo)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(runz={}), "runz"),
        (lambda c: c["launch"].update(nodes=2), "launch.nodes: deepspeed"),
        (lambda c: c["launch"].update(launcher="srun", ranks_per_node=1), "launch.ranks_per_node: Snakemake's"),
        (lambda c: c["runs"]["clip"].update(launch={"nodes": 2}), "runs.clip.launch.nodes"),
        (
            lambda c: c["runs"]["clip"].update(launch={"resources": {"gres": "gpu:1"}}),
            "runs.clip.launch.resources.gres",
        ),
        (lambda c: c["runs"]["clip"].update(variant_of="nobody"), "runs.clip.variant_of"),
        (lambda c: c["fine_tune"]["filip_ft"].update({"from": "nobody"}), "fine_tune.filip_ft.from"),
        (lambda c: c["tables"]["zero_shot"].append("nobody"), "tables.zero_shot"),
        (lambda c: c["eval"].pop("scene_pointing"), "tables.scene_pointing"),
        (lambda c: c["efficiency"]["orig"].update(accuracy_of="nobody"), "efficiency.orig.accuracy_of"),
        # cards that do not exist
        (lambda c: c.update(sources=["nowhere"]), "sources, 'nowhere'"),
        (lambda c: c["fine_tune"]["filip_ft"].update(source="nowhere"), "fine_tune.filip_ft.source, 'nowhere'"),
        (lambda c: c["eval"]["zero_shot"].append("nowhere"), "eval.zero_shot, 'nowhere'"),
    ],
)
def test_a_broken_config_is_refused_with_the_key(demo: dict, change, named: str) -> None:
    change(demo)
    with pytest.raises(UserError) as caught:
        check_config(demo)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "run", "difference"),
    [
        ("late_128_fp32", "filip", "transport_dtype is bf16 there and fp32 here"),
        ("late_128_fp32", "clip", "model.interaction is pooled there and token_wise here"),
        ("late_64_bf16", "filip", "model.embed_dim is 128 there and 64 here"),
        ("late_64_bf16_25", "filip", "token_keep_ratio is 1.0 there and 0.25 here"),
    ],
)
def test_an_accuracy_of_other_settings_is_refused(demo: dict, row: str, run: str, difference: str) -> None:
    demo["efficiency"][row]["accuracy_of"] = run
    with pytest.raises(UserError, match=rf"efficiency\.{row}\.accuracy_of") as caught:
        WorkflowStudy(demo)
    assert difference in str(caught.value)


@pytest.mark.parametrize("override", ["no_such_key=1", "model.interaction=token", "token_keep_ratio=25"])
def test_an_override_that_the_trainer_would_refuse_is_refused_before_any_job(demo: dict, override: str) -> None:
    demo["runs"]["filip"]["overrides"].append(override)
    with pytest.raises(UserError, match=override.split("=")[0]):
        WorkflowStudy(demo).run_dir("filip")


@pytest.mark.parametrize(("study", "name", "ranks"), [("large", "filip_large_coco", 192), ("base", "filip_base", 48)])
def test_a_batch_that_its_ranks_cannot_share_is_refused_before_any_job(study: str, name: str, ranks: int) -> None:
    config = yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text())
    entry = {**config["runs"], **config["fine_tune"]}[name]
    entry["launch"] = {"nodes": ranks // 8}
    with pytest.raises(UserError, match=f"'{name}' on {ranks // 8} x 8 ranks: .*by {ranks} ranks"):
        WorkflowStudy(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overrides": {"zero_shot": ["wrokers=3"]}},
            "eval.overrides.zero_shot: the protocol zero_shot has no option 'wrokers'",
        ),
        (
            {"overrides": {"retrieval": ["out=x.json"]}},
            "eval.overrides.retrieval: .* no option 'out' that a study may set",
        ),
        ({"overrides": {"zeroshot": []}}, "eval.overrides"),
    ],
)
def test_an_unknown_option_of_an_evaluation_is_refused(demo: dict, change: dict, message: str, tmp_path: Path) -> None:
    demo["eval"] |= change
    with pytest.raises(UserError, match=message):
        WorkflowStudy(demo)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(demo))
    with pytest.raises(UserError, match=message):  # and before the workflow is started
        check.main(check.Check(str(tmp_path / "study.yaml")))


@pytest.mark.parametrize("prefix", backends())
def test_a_peer_may_be_of_any_kind_that_the_evaluation_loads(demo: dict, prefix: str) -> None:
    demo["peers"] = {"theirs": {"label": "theirs", "model": f"{prefix}:some/where"}}
    assert WorkflowStudy(demo).peers["theirs"]["model"] == f"{prefix}:some/where"
