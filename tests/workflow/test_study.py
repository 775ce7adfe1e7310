"""workflow/study.py without Snakemake: config checks, commands and paths."""

import copy
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from filip.command import compose_config
from filip.errors import UserError
from filip.eval.scene_sheet import SceneSheet
from filip.explore.export import Export
from filip.study import PROTOCOLS, load_study, resolve
from filip.study_checks import NOT_COMPARED, check_config
from filip.train.engine import resolve_batching
from filip.train.fingerprint import learning_settings
from filip.train.plan import memory_plan
from workflow.slurm import earlier_jobs
from workflow.study import ROOT, WorkflowStudy

CONFIGS = sorted((ROOT / "workflow" / "config").glob("*.yaml"))


@pytest.fixture
def demo() -> dict:
    return yaml.safe_load((ROOT / "workflow" / "config" / "demo.yaml").read_text())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_study_passes_its_own_checks_and_composes_every_training(path: Path) -> None:
    study = WorkflowStudy(yaml.safe_load(path.read_text()))
    assert study.name == path.stem
    for run in [*study.trained, *study.efficiency]:
        assert study.run_dir(run).startswith(f"results/{study.name}/runs/{run}-")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_card_that_the_rules_wait_for_exists(path: Path) -> None:
    study = WorkflowStudy(yaml.safe_load(path.read_text()))
    cards = [study.card(source) for source in study.sources] + study.report_cards()
    cards += [card for protocol in PROTOCOLS for card in study.cards(protocol)]
    assert cards and all((ROOT / card).is_file() for card in cards)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("runs"), "runs"),
        (lambda c: c.update(runz={}), "runz"),
        (lambda c: c["demo"].update(port="many"), "demo.port"),
        (lambda c: c["launch"].update(launcher="mpirun"), "launch.launcher"),
        (lambda c: c["launch"].update(launcher="torchrun", nodes=4), "launch.nodes: torchrun"),
        (lambda c: c["launch"].update(nodes=2), "launch.hostfile: deepspeed needs a hostfile"),
        (
            lambda c: c["launch"].update(launcher="srun", ranks_per_node=1),
            "launch.ranks_per_node: Snakemake's",
        ),
        (lambda c: c["runs"]["clip"].update(launch={"nodes": 2}), "runs.clip.launch.hostfile"),
        (
            lambda c: c["runs"]["clip"].update(launch={"resources": {"gres": "gpu:1"}}),
            "runs.clip.launch.resources.gres",
        ),
        (lambda c: c["runs"]["clip"].update(overrides="a=b"), "runs.clip.overrides"),
        (lambda c: c["runs"]["clip"].update(variant_of="nobody"), "runs.clip.variant_of"),
        (lambda c: c["fine_tune"]["filip_ft"].update({"from": "nobody"}), "fine_tune.filip_ft.from"),
        (lambda c: c["tables"]["zero_shot"].append("nobody"), "tables.zero_shot"),
        (lambda c: c["eval"].pop("alignment"), "tables.alignment"),
        (lambda c: c["efficiency"]["orig"].update(accuracy_of="nobody"), "efficiency.orig.accuracy_of"),
    ],
)
def test_a_broken_config_is_refused_with_the_key(demo: dict, change, named: str) -> None:
    change(demo)
    with pytest.raises(UserError) as caught:
        check_config(demo)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.update(sources=["nowhere"]), "sources, 'nowhere'"),
        (lambda c: c["runs"]["clip"].update(sources=["nowhere"]), "runs.clip.sources, 'nowhere'"),
        (lambda c: c["fine_tune"]["clip_ft"].update(source="nowhere"), "fine_tune.clip_ft.source, 'nowhere'"),
        (lambda c: c["eval"]["zero_shot"].append("nowhere"), "eval.zero_shot, 'nowhere'"),
        (lambda c: c["eval"]["linear_probe"].append("nowhere"), "eval.linear_probe, 'nowhere'"),
    ],
)
def test_a_card_that_does_not_exist_is_refused_by_name(demo: dict, change, named: str) -> None:
    change(demo)
    with pytest.raises(UserError) as caught:
        check_config(demo)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        (lambda c: c.update(launch={"by": "srun", "ranks_per_node": 8}), "launcher: srun"),
        (lambda c: c["efficiency"]["orig"].update(token_percent=25), "token_keep_ratio=0.25"),
        (lambda c: c["efficiency"]["orig"].update(embed_dim=64), "model.embed_dim=256"),
    ],
)
def test_a_key_of_older_studies_is_refused_with_what_to_write_now(demo: dict, change, advice: str) -> None:
    change(demo)
    with pytest.raises(UserError, match=advice):
        check_config(demo)


@pytest.mark.parametrize(
    ("row", "run", "difference"),
    [
        ("late_128_fp32", "filip", "precision is bf16 there and fp32 here"),
        ("late_128_bf16", "clip", "model.interaction is pooled there and token_wise here"),
        ("late_64_bf16", "filip", "model.embed_dim is 128 there and 64 here"),
        ("late_64_fp32_25", "filip", "token_keep_ratio is 1.0 there and 0.25 here"),
    ],
)
def test_an_accuracy_of_other_settings_is_refused_with_the_difference(
    demo: dict, row: str, run: str, difference: str
) -> None:
    demo["efficiency"][row]["accuracy_of"] = run
    with pytest.raises(UserError, match=rf"efficiency\.{row}\.accuracy_of") as caught:
        WorkflowStudy(demo)
    assert difference in str(caught.value)


def test_what_an_accuracy_may_differ_in_are_settings_that_exist(demo: dict) -> None:
    settings = learning_settings(WorkflowStudy(demo).resolved("filip"))
    assert set(NOT_COMPARED) <= settings.keys()


@pytest.mark.parametrize("study", ["ablation", "base", "large"])
def test_reproductions_keep_the_paper_s_quarter_of_the_tokens_and_show_all_tokens_beside_it(
    study: str,
) -> None:
    study = load_study(ROOT / f"workflow/config/{study}.yaml")
    ratios = {run: study.resolved(run).token_keep_ratio for run in study.evaluated}
    variants = {run: own["variant_of"] for run, own in study.runs.items() if "variant_of" in own}
    assert len(variants) == 1
    for run, ratio in ratios.items():
        assert ratio == (1.0 if run in variants else 0.25)
    for variant, base in variants.items():
        for table in study.tables:
            assert (variant in study.rows(table)) == (base in study.rows(table))
        ours, theirs = study.resolved(variant), study.resolved(base)
        ours.token_keep_ratio = theirs.token_keep_ratio
        assert ours == theirs


@pytest.mark.parametrize("override", ["no_such_key=1", "model.interaction=token", "token_keep_ratio=25"])
def test_an_override_that_the_trainer_would_refuse_is_refused_before_any_job(
    demo: dict, override: str
) -> None:
    demo["runs"]["filip"]["overrides"].append(override)
    with pytest.raises(UserError, match=override.split("=")[0]):
        WorkflowStudy(demo).run_dir("filip")


def test_the_run_folder_follows_what_is_trained_and_nothing_else(demo: dict) -> None:
    before = WorkflowStudy(demo).run_dir("filip")
    ranks = copy.deepcopy(demo)
    ranks["launch"]["ranks_per_node"] = 4  # another world size continues the same run
    assert WorkflowStudy(ranks).run_dir("filip") == before
    changed = copy.deepcopy(demo)
    changed["runs"]["filip"]["overrides"].append("seed=7")
    assert WorkflowStudy(changed).run_dir("filip") != before


@pytest.mark.parametrize(
    ("launch", "command"),
    [
        (
            {"launcher": "deepspeed", "ranks_per_node": 2, "accelerator": "cpu"},
            "DS_ACCELERATOR=cpu deepspeed --num_gpus 2 --master_port 29500 --no_local_rank --module filip.train",
        ),
        (
            {"launcher": "deepspeed", "nodes": 2, "ranks_per_node": 8, "hostfile": "hosts"},
            "deepspeed --hostfile hosts --num_nodes 2 --num_gpus 8 --master_port 29500 --no_local_rank "
            "--module filip.train",
        ),
        (
            {"launcher": "torchrun", "ranks_per_node": 4},
            "torchrun --standalone --nproc_per_node 4 -m filip.train",
        ),
        (
            {"launcher": "srun", "nodes": 16, "ranks_per_node": 8, "cpus_per_rank": 5},
            "python -m filip.train.slurm_job run_dir=DIR -- srun --nodes=16 --ntasks-per-node=8 --cpus-per-task=5 "
            "--kill-on-bad-exit=1 python -m filip.train",
        ),
    ],
    ids=["deepspeed", "deepspeed on two nodes", "torchrun", "srun"],
)
def test_the_launcher_decides_how_a_training_starts(demo: dict, launch: dict, command: str) -> None:
    assert WorkflowStudy({**demo, "launch": launch}).launch("filip").command("DIR") == command


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
    computed = WorkflowStudy(demo).node_memory("filip")
    assert asked("filip") == {"nodes": 8, "runtime": 100, "mem_mb": computed, **common}
    assert computed % 1000 == 0 and asked(tuned)["mem_mb"] == WorkflowStudy(demo).node_memory(tuned)
    demo["launch"]["resources"]["mem_mb"] = 123
    stated = WorkflowStudy(demo).train_resources(submits=lambda: False)
    assert stated["mem_mb"](["filip"]) == 123


def test_nodes_of_the_paper_s_studies_ask_for_the_memory_that_the_plan_adds_up() -> None:
    for study, run in (("base", "filip_base"), ("large", "filip_large")):
        found = WorkflowStudy(yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text()))
        assert 40_000 < found.node_memory(run) < 200_000, study
        for name in (*found.trained, *found.efficiency):
            assert found.node_memory(name) > 1000


def test_the_trainer_is_told_how_many_ranks_there_should_be(demo: dict) -> None:
    tuned = next(iter(demo["fine_tune"]))
    demo["fine_tune"][tuned]["launch"] = {"ranks_per_node": 1}
    study = WorkflowStudy(demo)
    assert "world_size=2" in study.train_arguments("filip") and "world_size=1" in study.train_arguments(tuned)


@pytest.mark.parametrize(
    ("study", "name", "ranks"), [("large", "filip_large_coco", 192), ("base", "filip_base", 48)]
)
def test_a_batch_that_its_ranks_cannot_share_is_refused_before_any_job(
    study: str, name: str, ranks: int
) -> None:
    config = yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text())
    entry = {**config["runs"], **config["fine_tune"]}[name]
    entry["launch"] = {"nodes": ranks // 8}
    with pytest.raises(UserError, match=f"'{name}' on {ranks // 8} x 8 ranks: .*by {ranks} ranks"):
        WorkflowStudy(config)


@pytest.mark.parametrize("study", ["ablation", "base", "large"])
def test_every_training_of_the_paper_s_studies_fits_its_gpus(study: str) -> None:
    """32 GB of a V100, counted by the memory plan, at the training's own launch; with a tenth left over."""
    found = WorkflowStudy(yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text()))
    for name in [*found.trained, *found.efficiency]:
        config, ranks = copy.deepcopy(found.resolved(name)), found.launch(name).world_size
        if name in found.fine_tunes:  # the trainer takes the architecture from the weights
            model = found.resolved(found.fine_tunes[name]["from"]).model
            model = replace(model, gradient_checkpointing=config.model.gradient_checkpointing)
            config.model = copy.deepcopy(model)
        config.model.image.image_size = config.image_size or config.model.image.image_size
        plan = memory_plan(config.model, config, resolve_batching(config, ranks), ranks)
        assert plan.total < 0.9 * 32e9, (name, plan.lines())


def test_jobs_of_a_dead_snakemake_that_make_the_same_training_are_found(tmp_path: Path) -> None:
    listing = "\n".join(
        [
            f"7|{tmp_path}|rule_pretrain_wildcards_filip",
            f"8|{tmp_path}|rule_pretrain_wildcards_filip_ft",
            f"9|{tmp_path}/other|rule_pretrain_wildcards_filip",
            f"10|{tmp_path}|rule_zero_shot_wildcards_filip",
            f"11|{tmp_path}|(null)",
        ]
    )
    assert earlier_jobs(listing, "filip", tmp_path) == ["7"]


def test_a_scheduler_that_does_not_answer_is_asked_only_to_submit_and_then_reported(
    demo: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue without its controller waits for good: a dry run must not."""
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexec sleep 600\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("workflow.slurm.ANSWERS_WITHIN", 0.5)
    demo["launch"] = {"launcher": "srun", "ranks_per_node": 8}
    extra = WorkflowStudy(demo).train_resources(submits=lambda: False)["slurm_extra"]
    assert extra(["filip"]) == "--signal=USR1@600"
    extra = WorkflowStudy(demo).train_resources(submits=lambda: True)["slurm_extra"]
    with pytest.raises(UserError, match=r"no answer in 0.5 s.*'filip' may be in training already"):
        extra(["filip"])
    squeue.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n"
    )
    with pytest.raises(UserError, match="Unable to contact slurm controller"):
        extra(["filip"])


@pytest.mark.parametrize("tuned", ["clip_ft", "filip_ft"])
def test_a_fine_tuning_inherits_the_architecture_of_its_run_and_nothing_else(demo: dict, tuned: str) -> None:
    run = demo["fine_tune"][tuned]["from"]
    demo["runs"][run]["overrides"] += ["model.embed_dim=32", "optimizer.base_lr=1"]
    demo["efficiency"] = {}  # whose accuracies would no longer be those of the same settings
    study = WorkflowStudy(demo)
    assert f"init_from=results/demo/models/{run}.safetensors" in study.train_arguments(tuned)
    resolved = study.resolved(tuned)
    assert resolved.model == study.resolved(run).model
    assert not resolved.data.auto_augment and not resolved.data.back_translation
    assert resolved.optimizer.base_lr == resolve("experiment=demo_finetune").optimizer.base_lr


def test_seeds_repeat_every_run_and_are_averaged_into_its_row(demo: dict) -> None:
    once, thrice = WorkflowStudy(demo), WorkflowStudy({**demo, "seeds": 3})
    assert set(thrice.runs) == {f"{run}{end}" for run in once.runs for end in ("", "_s1", "_s2")}
    assert thrice.replicas("filip") == ["filip", "filip_s1", "filip_s2"]
    assert "seed=2" in thrice.train_arguments("filip_s2")
    assert thrice.rows("zero_shot") == once.rows("zero_shot")


def test_more_seeds_continue_from_the_run_that_there_is(demo: dict) -> None:
    assert WorkflowStudy({**demo, "seeds": 3}).run_dir("filip") == WorkflowStudy(demo).run_dir("filip")


def test_every_seed_is_evaluated(demo: dict) -> None:
    study = WorkflowStudy({**demo, "seeds": 3})
    for protocol in ("zero_shot", "retrieval"):
        assert {"filip", "filip_s1", "filip_s2"} <= set(study.evaluated_by(protocol))
    assert study.evaluated_by("alignment") == ["clip", "clip_s1", "clip_s2", "filip", "filip_s1", "filip_s2"]


def test_the_config_beside_the_results_is_the_same_study(demo: dict, tmp_path: Path) -> None:
    """`make demo SEEDS=3` changes no YAML; the report reads study.json."""
    study = WorkflowStudy({**demo, "seeds": 3})
    (tmp_path / "study.json").write_text(study.config_text())
    read = load_study(None, tmp_path)
    assert read.runs == study.runs and read.evaluated == study.evaluated
    assert read.replicas("filip") == ["filip", "filip_s1", "filip_s2"]


def test_a_run_whose_accuracy_is_shown_is_evaluated(demo: dict) -> None:
    demo["tables"] = {"alignment": ["filip"]}
    study = WorkflowStudy(demo)
    assert study.evaluated_by("zero_shot") == ["clip", "filip"]
    assert study.evaluated == ["clip", "filip"]


def test_only_a_source_whose_card_says_so_is_built_and_served_here(demo: dict) -> None:
    study = WorkflowStudy({**demo, "sources": ["demo", "cc3m"]})
    assert study.built_list("demo") == ["results/demo/corpus/list.parquet"] and study.built_list("cc3m") == []
    assert (
        study.while_served("demo")
        == "python -m filip.data.demo.serving root=results/demo/corpus port=8765 -- "
    )
    assert study.while_served("cc3m") == ""
    assert study.corpus_builder == "filip.data.demo.corpus"
    assert (
        WorkflowStudy(yaml.safe_load((ROOT / "workflow/config/one_gpu.yaml").read_text())).corpus_builder
        is None
    )


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"overrides": {"zero_shot": ["wrokers=3"]}},
            "eval.overrides.zero_shot: filip eval zero_shot has no option 'wrokers'",
        ),
        (
            {"overrides": {"retrieval": ["out=x.json"]}},
            "eval.overrides.retrieval: .* no option 'out' that a study may set",
        ),
        ({"overrides": {"zeroshot": []}}, "eval.overrides"),
        (
            {"loaders": {"cifar10": "torchvision"}},
            "eval.loaders.cifar10: no protocol of the study evaluates that card",
        ),
    ],
)
def test_an_option_that_an_evaluation_does_not_have_is_refused(
    demo: dict, change: dict, message: str
) -> None:
    demo["eval"] |= change
    with pytest.raises(UserError, match=message):
        WorkflowStudy(demo)


def test_a_peer_may_not_have_the_name_of_a_run(demo: dict) -> None:
    demo["peers"] = {"clip": {"label": "theirs", "model": "open_clip:ViT-B-32"}}
    with pytest.raises(UserError, match=r"peers\.clip"):
        WorkflowStudy(demo)


@pytest.mark.parametrize(("shards", "parts"), [(1, 0), (8, 0), (9, 2), (1242, 156), (38_700, 256)])
def test_as_many_translating_jobs_as_the_download_has_shards_for(
    demo: dict, tmp_path: Path, shards: int, parts: int
) -> None:
    (tmp_path / "download.json").write_text(f'{{"notes": {{"shards": {shards}}}}}')
    found = WorkflowStudy(demo).translation_parts("demo", tmp_path / "download.json")
    assert found == [f"results/demo/data/demo/translated/{part}-of-{parts}.done" for part in range(parts)]


def test_a_training_on_cpus_takes_the_whole_machine(demo: dict) -> None:
    launch = WorkflowStudy(demo).launch("filip")
    assert launch.threads(lambda: 2) == 2 and launch.threads(lambda: 16) == 16
    demo["launch"] = {"launcher": "deepspeed", "ranks_per_node": 8}
    assert WorkflowStudy(demo).launch("filip").threads(lambda: 96) == 8


def test_a_cluster_s_profile_need_not_know_a_number_of_cores(demo: dict) -> None:
    demo["launch"] = {"launcher": "srun", "ranks_per_node": 8, "accelerator": "cpu"}
    demo["runs"]["filip"]["overrides"].append("data.workers=6")

    def unknown() -> int:
        raise AssertionError("Snakemake raises here without --cores")

    assert WorkflowStudy(demo).launch("filip").threads(unknown) == 7


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


def test_all_efficiency_rows_are_one_start_of_their_own_module(demo: dict) -> None:
    study = WorkflowStudy(demo)
    assert study.efficiency_command().endswith("--module filip.train.efficiency")
    assert study.gathered == "2048"
    del demo["efficiency_train"]["gathered"]
    assert WorkflowStudy(demo).gathered == "null"
    assert study.efficiency_resources(submits=lambda: False)["nodes"](None) == 1


def test_a_stage_is_stale_when_what_it_reads_of_a_card_changes_and_not_otherwise(demo: dict) -> None:
    study = WorkflowStudy(demo)
    stages = ("prepare", "text_rules", "download", "translate")
    before = {stage: study.settings("demo", stage) for stage in stages}
    card = study.source_cards["demo"]

    def stale() -> set[str]:
        return {stage for stage in stages if study.settings("demo", stage) != before[stage]}

    card.title, card.path = "another title", "elsewhere.yaml"
    assert stale() == set()
    card.text_rules.max_repeats += 1
    assert stale() == {"text_rules"}
    card.image_rules.min_side += 1
    assert stale() == {"text_rules", "download"}
    card.caption_column = "alt"
    assert stale() == {"prepare", "text_rules", "download"}


def test_the_files_of_a_list_are_inputs(demo: dict, tmp_path: Path) -> None:
    study = WorkflowStudy(demo)
    assert study.list_input("demo") == study.built_list("demo")
    card = study.source_cards["demo"]
    card.built_by, card.list = None, str(tmp_path / "part-*.tsv")
    assert study.list_input("demo") == [], "the command says how to obtain it"
    for number in (1, 0):
        (tmp_path / f"part-{number}.tsv").touch()
    assert study.list_input("demo") == [str(tmp_path / f"part-{number}.tsv") for number in (0, 1)]
    assert f"{study.data_dir}/demo/funnel/prepare.json" in study.funnel_fragments()
    assert (study.data_threads, study.data_memory) == (2, "1GB")
    large = WorkflowStudy({**demo, "data": {"threads": 16, "memory": "32GB"}})
    assert (large.data_threads, large.data_memory) == (16, "32GB")
