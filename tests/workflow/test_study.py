"""The studies of workflow/config and what they train: runs, seeds, searches, fine-tunings, run folders."""

import copy
import json
from itertools import product
from pathlib import Path

import pytest
import yaml

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.study import Study, check, load_study, resolve
from filip.study.search import Search, main
from workflow.study import ROOT, WorkflowStudy

CONFIGS = sorted((ROOT / "workflow" / "config").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_study_passes_its_own_checks_and_composes_every_training(path: Path) -> None:
    study = WorkflowStudy(yaml.safe_load(path.read_text()))
    assert study.name == path.stem
    for run in [*study.trained, *study.efficiency]:
        assert study.run_dir(run).startswith(f"results/{study.name}/runs/{run}-")


@pytest.mark.parametrize(("study", "gpus"), [("base", 128), ("large", 192)])
def test_the_paper_s_studies_train_one_model_on_its_gpus(study: str, gpus: int) -> None:
    result = WorkflowStudy(yaml.safe_load((ROOT / f"workflow/config/{study}.yaml").read_text()))
    assert [result.launch(run).world_size for run in result.runs] == [gpus]
    assert {result.resolved(name).token_keep_ratio for name in result.fine_tunes} == {1}


def test_the_run_folder_follows_what_is_trained_and_nothing_else(demo: dict) -> None:
    before = WorkflowStudy(demo).run_dir("filip")
    ranks = copy.deepcopy(demo)
    ranks["launch"]["ranks_per_node"] = 4  # another world size continues the same run
    assert WorkflowStudy(ranks).run_dir("filip") == before
    changed = copy.deepcopy(demo)
    changed["runs"]["filip"]["overrides"].append("seed=7")
    assert WorkflowStudy(changed).run_dir("filip") != before


@pytest.mark.parametrize("run", ["clip", "filip"])
def test_a_fine_tuning_inherits_the_architecture_of_its_run_and_nothing_else(demo: dict, run: str) -> None:
    demo["fine_tune"]["filip_ft"]["from"] = run
    demo["runs"][run]["overrides"] += ["model.embed_dim=32", "optimizer.base_lr=1"]
    demo["efficiency"] = {}  # whose accuracies would no longer be those of the same settings
    study = WorkflowStudy(demo)
    assert f"init_from=results/demo/models/{run}.safetensors" in study.train_arguments("filip_ft")
    resolved = study.resolved("filip_ft")
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
    study["runs"]["wide"] = {"label": "Wide", "overrides": ["model.widht=3"]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # without Slurm, wherever this runs
    with pytest.raises(SystemExit):
        check.main(check.Check("study.yaml"))
    page = " ".join(capsys.readouterr().out.split())
    for words in (
        "mine: no list of URLs: there is no file or folder 'pairs.csv'. How to obtain it: Ask for it.",
        "cc3m: source 'cc3m'", "`list: PATH` in data/NAME.yaml",
        "mine, cc3m: img2dataset ignores TDM reservations", "engine: own does not",
        "mine, captions through 'de': the engine marian needs its weights",
        "cc3m, captions through 'ru': no folder models/opus-mt/en-ru and none models/opus-mt/ru-en",
        "14 of 14 are not below results/benchmarks: cifar10 (wds_vtab-cifar10)",
        "there is no sbatch here", "trainings ! wide: study config, training overrides: there is no option 'widht'",
    ):  # fmt: skip
        assert words in page, words

    loaded = load_study("study.yaml")
    assert loaded.resolved("filip_base").model.image.image_size == 224, "a fine-tuning's resolution stays its own"
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


RATES = {"optimizer.base_lr": ["2e-3", "4e-3"]}
SEARCH = {"settings": RATES, "seeds": [100, 101], "card": "demo_scenes_search"}


def test_a_search_trains_each_run_with_every_value_and_seed_and_no_table_shows_it(demo: dict) -> None:
    demo |= {"seeds": 2, "search": SEARCH}
    demo["runs"]["smooth"] = {**demo["runs"]["filip"], "search": {}}
    demo["runs"]["clip"]["search"] = {"optimizer.base_lr": ["1e-3"], "optimizer.weight_decay": [0, 0.1]}
    study = WorkflowStudy(demo)
    assert study.trials_of("filip") == [f"filip-{rate}_s{seed}" for rate in ("2e-3", "4e-3") for seed in (100, 101)]
    assert study.trials_of("clip")[-1] == "clip-1e-3-0.1_s101" and not study.trials_of("smooth")
    trial = study.resolved("filip-4e-3_s101")
    assert (trial.optimizer.base_lr, trial.seed) == (0.004, 101)
    assert not set(study.trials) & set(study.evaluated)
    assert "eval.data=[eval/demo_scenes_search.yaml]" in study.train_arguments("filip-4e-3_s101")
    assert not any(argument.startswith("eval.") for argument in study.train_arguments("filip"))
    assert study.chosen("filip_s1") == study.chosen("filip") == ["results/demo/search/filip.txt"]
    assert study.chosen("smooth") == study.chosen("filip_ft") == study.chosen("filip-4e-3_s101") == []
    assert study.train_inputs("filip_s1")["chosen"] == study.chosen("filip")


def test_studies_that_share_data_share_the_corpus_next_to_it(demo: dict) -> None:
    demo |= {"study": "other", "data_dir": "results/demo/data"}
    assert Study(demo).corpus == "results/demo/corpus"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(search={**SEARCH, "seeds": [0, 100]}), "search.seeds: seed 0 is reported"),
        (
            lambda c: c.update(search={**SEARCH, "card": "demo_scenes_new"}),
            "'demo_scenes_new' is reported by eval.retr",
        ),
        (lambda c: c.update(search={**SEARCH, "card": "nowhere"}), "search.card"),
        (lambda c: c["runs"]["clip"].update(search=RATES), "runs.clip.search: needs the study's `search`"),
    ],
)
def test_a_search_or_grid_that_cannot_be_is_refused_with_the_key(demo: dict, change, message: str) -> None:
    change(demo)
    with pytest.raises(UserError, match=message):
        Study(demo)


def test_the_values_with_the_highest_mean_over_the_seeds_are_chosen(tmp_path: Path) -> None:
    of_rates = {0.002: (0.1, 0.5), 0.004: (0.3, 0.35), 0.008: (0.2, 0.2)}
    trials, out = [], tmp_path / "best.txt"
    for rate, seed in product(of_rates, (0, 1)):
        score = of_rates[rate][seed]
        both = {"eval/scenes_i2t_r1": score - 0.01, "eval/scenes_t2i_r1": score + 0.01, "eval/others": 1.0}
        result = {"config": {"seed": seed, "optimizer": {"base_lr": rate}}, "evaluated": both}
        trials.append(str(tmp_path / f"{rate}-{seed}.json"))
        Path(trials[-1]).write_text(json.dumps(result))
    arguments = ["card=scenes", "settings=[optimizer.base_lr]", f"trials=[{','.join(trials)}]", f"out={out}"]
    run_command(main, Search, argv=arguments)
    assert out.read_text() == "optimizer.base_lr=0.004\n"
    for card, setting, why in (
        ("nowhere", "base_lr", "have no score on nowhere"),
        ("scenes", "lr", r"no optimizer\.lr"),
    ):
        with pytest.raises(UserError, match=why):
            main(Search(card, [f"optimizer.{setting}"], trials, str(out)))
