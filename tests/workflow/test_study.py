"""The studies of workflow/config and what they train: runs, seeds, fine-tunings, run folders."""

import copy
from pathlib import Path

import pytest
import yaml

from filip.errors import UserError
from filip.study import PROTOCOLS, check, load_study, resolve
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


@pytest.mark.parametrize(
    ("study", "run", "all_tokens"),
    [
        ("ablation", "filip", ("ablation", "filip_all_tokens")),
        ("base", "filip_base", ("base_all_tokens", "filip_base_all_tokens")),
        ("large", "filip_large", ("large_all_tokens", "filip_large_all_tokens")),
    ],
)
def test_the_paper_s_quarter_of_the_tokens_is_the_experiment_s_and_all_tokens_are_a_run_of_ours(
    study: str, run: str, all_tokens: tuple[str, str]
) -> None:
    theirs = load_study(ROOT / f"workflow/config/{study}.yaml").resolved(run)
    assert theirs.token_keep_ratio == resolve(f"experiment={study}").token_keep_ratio == 0.25
    ours = load_study(ROOT / f"workflow/config/{all_tokens[0]}.yaml").resolved(all_tokens[1])
    assert ours.token_keep_ratio == 1
    ours.token_keep_ratio, ours.token_keep_schedule = 0.25, theirs.token_keep_schedule
    assert ours == theirs


@pytest.mark.parametrize(("study", "gpus"), [("base", 128), ("large", 192)])
def test_the_paper_s_studies_train_one_model_on_its_gpus(study: str, gpus: int) -> None:
    found = WorkflowStudy(yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text()))
    assert [found.launch(run).world_size for run in found.runs] == [gpus]
    assert {found.resolved(name).token_keep_ratio for name in found.fine_tunes} == {0.25}


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


def test_what_a_study_lacks_is_named_before_its_first_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan is drawn without lists, models and data, and a week of download would precede what fails for them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.yaml").write_text("name: mine\nlist: pairs.csv\nobtain: Ask for it.\n")
    study = yaml.safe_load((ROOT / "workflow/config/base.yaml").read_text())
    study |= {"sources": ["mine", "cc3m"], "data_dir": "datasets"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm, wherever this runs
    with pytest.raises(SystemExit):
        check.main(check.Check("study.yaml"))
    page = " ".join(capsys.readouterr().out.split())
    for words in (
        "mine: no list of URLs: there is no file or folder 'pairs.csv'. How to obtain it: Ask for it.",
        "cc3m: source 'cc3m'", "`list: PATH` in data/NAME.yaml",
        "mine, captions through 'de': the engine marian needs its weights",
        "cc3m, captions through 'ru': no folder models/opus-mt/en-ru and none models/opus-mt/ru-en",
        "14 of 14 are not below results/benchmarks: cifar10 (wds_vtab-cifar10)",
        "that of mine, whose cards state no expected_count",
        "there is no sbatch here",
    ):  # fmt: skip
        assert words in page, words

    loaded = load_study("study.yaml")
    with pytest.raises(UserError, match="lists: mine: no list"):
        check.require(loaded, {"url_list"})
    with pytest.raises(UserError, match="engines: mine, captions"):
        check.require(loaded, {"translate"})
    assert "14 of 14" in check.require(loaded, {"evaluate"})[0], "it stops nothing: the cells stay empty"
    (tmp_path / "pairs.csv").write_text("url,caption\n")
    for source in ("cc3m", "coco", "flickr30k"):
        (tmp_path / "datasets" / source).mkdir(parents=True)
        (tmp_path / "datasets" / source / "list.parquet").touch()  # read before, and gone since
    assert {finding.kind for finding in check.findings(loaded, ["lists"])} == set()

    (tmp_path / "data/mine.yaml").write_text("name: mine\nimages: photos\n")
    (finding,) = check.findings(loaded, ["lists"])
    assert finding.text.startswith("mine: no images at photos, as data/mine.yaml says")
    (tmp_path / "datasets/mine").mkdir()
    (tmp_path / "datasets/mine/manifest.json").touch()  # its data are complete
    assert not any("mine" in finding.text for finding in check.findings(loaded, ["lists", "engines"]))
