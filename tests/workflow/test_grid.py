"""A grid of a study becomes runs, its search becomes trials, and the best values end the command of each training."""

import json
from pathlib import Path

import pytest

from filip.command import run_command
from filip.errors import UserError
from filip.study import Study
from filip.study.grid import combinations
from filip.study.search import Search, main
from workflow.study import WorkflowStudy

RATES = {"optimizer.base_lr": ["2e-3", "4e-3"]}
SEARCH = {"settings": RATES, "seeds": [100, 101], "card": "demo_scenes_search"}


def test_a_grid_is_a_run_for_every_combination_in_its_place_in_every_table(demo: dict) -> None:
    demo |= {"seeds": 2, "explorer": {"card": "demo_scenes_new", "models": ["clip"]}}
    demo["fine_tune"], demo["efficiency"] = {}, {}
    demo["tables"] = {"retrieval": ["clip", "filip"]}
    demo["runs"]["filip"]["grid"] = {"token_keep_ratio": [1, 0.5], "token_score": ["maximum", "contrast"]}
    study = Study(demo)
    cells = ["filip-1-maximum", "filip-1-contrast", "filip-0.5-maximum", "filip-0.5-contrast"]
    assert study.rows("retrieval") == ["clip", *cells]
    assert study.label(cells[3]) == "FILIP, token_keep_ratio 0.5, token_score contrast"
    assert study.replicas(cells[3]) == [cells[3], f"{cells[3]}_s1"]
    resolved = study.resolved(f"{cells[3]}_s1")
    assert (resolved.token_keep_ratio, resolved.token_score, resolved.seed) == (0.5, "contrast", 1)
    assert combinations({}) == [{}]


def test_a_search_trains_each_run_with_every_value_and_seed_and_no_table_shows_it(demo: dict) -> None:
    demo |= {"seeds": 2, "search": SEARCH}
    demo["runs"]["smooth"]["search"] = {}
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


def test_runs_measure_a_curve_while_they_learn_on_test_sets_that_are_there_first(demo: dict) -> None:
    demo["curve"] = {"card": "demo_scenes_new", "every_steps": 50}
    study = WorkflowStudy(demo)
    assert {"eval.every_steps=50", "eval.data=[eval/demo_scenes_new.yaml]"} <= set(study.train_arguments("clip"))
    assert study.train_inputs("clip")["corpus"] == ["results/demo/corpus/corpus.json"]
    assert "learning.svg" in study.figures and "corpus" not in study.train_inputs("clip_ft")


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
        (lambda c: c["runs"]["filip"].update(grid=RATES), "fine_tune.filip_ft.from: 'filip' is a grid"),
        (lambda c: c["runs"]["filip"].update(grid={"seed": ["1 2"]}), "runs.filip.grid.seed"),
    ],
)
def test_a_search_or_grid_that_cannot_be_is_refused_with_the_key(demo: dict, change, message: str) -> None:
    change(demo)
    with pytest.raises(UserError, match=message):
        Study(demo)


def write_trials(folder: Path, scores: dict[tuple[float, int], float]) -> list[str]:
    files = []
    for (rate, seed), score in scores.items():
        both = {"eval/scenes_i2t_r1": score - 0.01, "eval/scenes_t2i_r1": score + 0.01, "eval/others": 1.0}
        result = {"config": {"seed": seed, "optimizer": {"base_lr": rate}}, "evaluated": both}
        files.append(str(folder / f"{rate}-{seed}.json"))
        Path(files[-1]).write_text(json.dumps(result))
    return files


def test_the_values_with_the_highest_mean_over_the_seeds_are_chosen(tmp_path: Path) -> None:
    found = {
        (0.002, 100): 0.1,
        (0.002, 101): 0.5,
        (0.004, 100): 0.3,
        (0.004, 101): 0.35,
        (0.008, 100): 0.2,
        (0.008, 101): 0.2,
    }
    trials, out = ",".join(write_trials(tmp_path, found)), tmp_path / "best.txt"
    arguments = ["card=scenes", "settings=[optimizer.base_lr]", f"trials=[{trials}]", f"out={out}"]
    run_command(main, Search, argv=arguments)
    assert out.read_text() == "optimizer.base_lr=0.004\n"
    with pytest.raises(UserError, match="have no score on nowhere"):
        main(Search("nowhere", ["optimizer.base_lr"], trials.split(","), str(out)))
