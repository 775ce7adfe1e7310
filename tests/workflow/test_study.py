"""The studies of workflow/config and what they train: runs, seeds, fine-tunings, run folders."""

import copy
from pathlib import Path

import pytest
import yaml

from filip.errors import UserError
from filip.study import PROTOCOLS, load_study, resolve
from workflow.sources import check as check_sources
from workflow.study import ROOT, WorkflowStudy

CONFIGS = sorted((ROOT / "workflow" / "config").glob("*.yaml"))


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


def test_the_run_folder_follows_what_is_trained_and_nothing_else(demo: dict) -> None:
    before = WorkflowStudy(demo).run_dir("filip")
    ranks = copy.deepcopy(demo)
    ranks["launch"]["ranks_per_node"] = 4  # another world size continues the same run
    assert WorkflowStudy(ranks).run_dir("filip") == before
    changed = copy.deepcopy(demo)
    changed["runs"]["filip"]["overrides"].append("seed=7")
    assert WorkflowStudy(changed).run_dir("filip") != before


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


def test_an_efficiency_row_without_settings_of_its_own_is_a_step_of_its_run(demo: dict) -> None:
    demo["runs"]["filip"]["overrides"] += ["model.embed_dim=32", "loss.pooled=0.5"]
    demo["efficiency"] = {"step": {"label": "a step", "accuracy_of": "filip"}}
    study = WorkflowStudy(demo)
    row, run = study.resolved("step"), study.resolved("filip")
    assert (row.model, row.loss) == (run.model, run.loss) and row.model.embed_dim == 32


def test_a_fine_tuning_may_be_a_warm_start(demo: dict) -> None:
    """It starts from weights that are not there yet when the study is read."""
    demo["fine_tune"]["filip_ft"].update(experiment="warm_start")
    resolved = WorkflowStudy(demo).resolved("filip_ft")
    assert resolved.warm_start.interaction == "token_wise" and resolved.init_from == "filip"


def test_seeds_repeat_every_run_and_are_averaged_into_its_row(demo: dict) -> None:
    once, thrice = WorkflowStudy(demo), WorkflowStudy({**demo, "seeds": 3})
    assert set(thrice.runs) == {f"{run}{end}" for run in once.runs for end in ("", "_s1", "_s2")}
    assert thrice.replicas("filip") == ["filip", "filip_s1", "filip_s2"]
    assert "seed=2" in thrice.train_arguments("filip_s2")
    assert thrice.rows("zero_shot") == once.rows("zero_shot")


def test_more_seeds_continue_from_the_run_that_there_is(demo: dict) -> None:
    assert WorkflowStudy({**demo, "seeds": 3}).run_dir("filip") == WorkflowStudy(demo).run_dir("filip")


def test_the_config_beside_the_results_is_the_same_study(demo: dict, tmp_path: Path) -> None:
    """`make demo SEEDS=3` changes no YAML; the report reads study.json."""
    study = WorkflowStudy({**demo, "seeds": 3})
    (tmp_path / "study.json").write_text(study.config_text())
    read = load_study(None, tmp_path)
    assert read.runs == study.runs and read.evaluated == study.evaluated
    assert read.replicas("filip") == ["filip", "filip_s1", "filip_s2"]


def test_a_source_whose_list_is_not_there_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan is drawn without the list, so that nothing but this says that the study cannot run."""
    (tmp_path / "data").mkdir()
    card = "name: mine\nlist: pairs.csv\nobtain: Ask for it.\n"
    (tmp_path / "data/mine.yaml").write_text(card)
    study = yaml.safe_load((ROOT / "workflow/config/one_gpu.yaml").read_text()) | {
        "sources": ["mine", "cc3m"]
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        check_sources(Path("study.yaml"))
    assert "2 of its 2 sources cannot be read" in str(refused.value)
    assert (
        "mine: no list of URLs: there is no file or folder 'pairs.csv'. How to obtain it: Ask for it."
        in str(refused.value)
    )
    assert "cc3m: source 'cc3m'" in str(refused.value) and "`list: PATH` in data/NAME.yaml" in str(
        refused.value
    )

    (tmp_path / "pairs.csv").write_text("url,caption\n")
    read = tmp_path / study.get("data_dir", f"results/{study['study']}/data") / "cc3m"
    read.mkdir(parents=True)
    (read / "list.parquet").touch()  # read before, and gone since
    check_sources(Path("study.yaml"))

    (tmp_path / "data/mine.yaml").write_text("name: mine\nimages: photos\n")
    with pytest.raises(UserError, match=r"mine: no images at photos, as data/mine\.yaml says"):
        check_sources(Path("study.yaml"))
