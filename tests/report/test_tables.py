"""Tables: what is ours, what is empty and why; test_published_rows has the published numbers."""

import json

import numpy as np
import pytest
import yaml

from filip.common.table_writer import FORMS, render
from filip.report.findings import findings
from filip.report.table import Cell, average, combine
from tests.report.results import EVAL, STUDY, add_seeds, cells, changed, recalls, tables_of, task, training, write

STUDIES = sorted((EVAL.parent / "workflow" / "config").glob("*.yaml"))


def test_every_cell_has_value_chance_n_and_interval(folder):
    table = tables_of(folder)["zero_shot"]
    result = cells(table, "baseline (CLIP)")
    assert (result["demo_food"].value, result["demo_food"].chance, result["demo_food"].n) == (0.10, 0.01, 200)
    assert result["demo_food"].ci95 == pytest.approx([0.08, 0.12])
    assert result["average"].value == pytest.approx(0.075) and result["average"].n == 500
    assert result["average"].chance == pytest.approx((1 / 100 + 1 / 130) / 2)
    row = table.rows[0]
    assert (row.run, row.run_id, row.commit, row.kind) == ("clip", "clip-00c0ffee", "0123456789abcdef", "ours")


def test_what_was_not_run_is_empty_with_the_reason(folder):
    tables = tables_of(folder)
    late = cells(tables["component_ablation"], "w/ late interaction")
    assert all(cell.value is None and "not run: no" in cell.reason for cell in late.values())
    assert str(folder / "eval" / "late") in late["average"].reason
    efficiency = tables["efficiency_ablation"]
    gone = cells(efficiency, "gone")
    assert gone["seconds_per_iteration"].value is None and "gone.json" in gone["seconds_per_iteration"].reason
    assert gone["time_ratio"].value is None
    assert cells(efficiency, "late-64")["accuracy"].reason == "not trained to the end"


def test_the_demo_s_fine_tunings_own_the_splits_of_its_source_and_are_transferred_to_the_others(folder):
    study = EVAL.parent / "workflow" / "config" / "demo.yaml"
    both = {name: recalls(0.1) for name in yaml.safe_load(study.read_text())["eval"]["retrieval"]}
    write(folder / "eval" / "filip_ft" / "retrieval" / "all.json", {"benchmarks": both})
    table = tables_of(folder, study)["retrieval"]
    own = {"demo_test", "demo_scenes_new"}  # as their cards say: fine_tuned_on
    filled = {
        row.section: {key.rsplit("_", 2)[0] for key, cell in row.cells.items() if cell.value is not None}
        for row in table.rows
        if row.run == "filip_ft"
    }
    assert filled == {"fine-tuned": own, "zero-shot after fine-tuning elsewhere (*)": set(both) - own}


def test_what_the_evaluations_warn_of_stands_below_the_table(folder):
    bad = {**task(0.1), "not_finite": 7, "note": "200 images, but the card's split has 260"}
    write(
        folder / "eval" / "filip" / "zero_shot" / "all.json",
        {"benchmarks": {"demo_food": bad, "demo_animals": task(0.2)}},
    )
    notes = " ".join(tables_of(folder)["zero_shot"].notes)
    assert "Food: 200 images, but the card's split has 260." in notes and "7 of 200 images" in notes


def test_seeds_are_averaged_with_their_spread(folder):
    add_seeds(folder)
    table = tables_of(folder)["zero_shot"]
    cell = cells(table, STUDY["runs"]["filip"]["label"])["demo_food"]
    assert cell.value == pytest.approx(0.20) and cell.seeds == 3 and cell.std == pytest.approx(0.04)
    files = [folder / "eval" / run / "zero_shot/all.json" for run in ("filip", "filip_s1", "filip_s2")]
    images = [json.loads(file.read_text())["benchmarks"]["demo_food"]["ci95"] for file in files]
    over_images = np.ptp(images, axis=1).mean() / 2 / 1.96
    rng = np.random.default_rng(0)  # Student's t with 2 degrees of freedom for trainings, and a normal error for images
    drawn = 0.04 / 3**0.5 * rng.standard_t(2, 1_000_000) + over_images * rng.normal(size=1_000_000)
    half = np.quantile(np.abs(drawn), 0.95)
    assert cell.ci95 == pytest.approx([0.20 - half, 0.20 + half], rel=0.01)
    assert "mean of 3 seeds" in render(table.grid(), "markdown")
    notes = " ".join(table.notes)
    assert "95 % by bootstrap over the test images" in notes
    assert "Rows of 3 seeds" in notes and "Student's t" in notes


def test_tables_from_the_yaml_average_the_seeds_that_were_asked_for_on_the_command_line(folder):
    add_seeds(folder)
    from_results = tables_of(folder)["zero_shot"].as_json()
    assert tables_of(folder, changed(folder, "plain"))["zero_shot"].as_json() == from_results
    assert tables_of(folder, changed(folder, "three", seeds=3))["zero_shot"].as_json() == from_results
    alone = tables_of(folder, changed(folder, "one", seeds=1))["zero_shot"]
    assert cells(alone, STUDY["runs"]["filip"]["label"])["demo_food"].seeds == 1


def test_peers_stand_in_the_same_tables_with_the_name_of_their_weights(folder):
    peers = {"b32": {"label": "CLIP B/32", "model": "open_clip:ViT-B-32:laion2b_s34b_b79k"}}
    study = changed(folder, "peers", peers=peers)
    tasks = {"demo_food": task(0.3), "demo_animals": task(0.4)}
    write(folder / "eval" / "b32" / "zero_shot" / "all.json", {"benchmarks": tasks})
    tables = tables_of(folder, study)
    row = next(row for row in tables["zero_shot"].rows if row.label == "CLIP B/32")
    assert (row.kind, row.run_id) == ("peer", "open_clip:ViT-B-32:laion2b_s34b_b79k")
    assert row.cells["average"].value == pytest.approx(0.35)
    retrieval = cells(tables["retrieval"], "CLIP B/32")
    assert all(cell.value is None and "not run" in cell.reason for cell in retrieval.values())


def test_recalls_by_each_similarity_have_a_table(folder):
    by = {
        ranking: {way: {"r1": value} for way in ("i2t", "t2i")} | {"ci95": {w: {"r1": None} for w in ("i2t", "t2i")}}
        for ranking, value in (("image", 0.5), ("text", 0.25), ("mean", 0.375))
    }
    result = recalls(0.05) | {"by": by}
    write(folder / "eval" / "filip" / "retrieval" / "all.json", {"run": "filip", "benchmarks": {"demo_fluent": result}})
    pooled = {"scorer": "pooled", "benchmarks": {"demo_fluent": recalls(0.02)}}
    write(folder / "eval" / "clip" / "retrieval" / "all.json", pooled)
    study = changed(folder, "rankings", tables={**STUDY["tables"], "rankings": ["clip", "filip"]})
    clip, filip = tables_of(folder, study)["rankings"].rows
    own = {clip.cells[f"demo_fluent_i2t_{ranking}"].value for ranking in by}
    assert own == {0.02}  # a pooled model has one similarity, which is shown once
    assert [bool(cell.reason) for cell in clip.cells.values()] == [True, True, False] * 2
    assert filip.cells["demo_fluent_i2t_image"].value == 0.5
    assert filip.cells["demo_fluent_t2i_text"].value == 0.25


def test_rows_that_were_evaluated_differently_are_named_below_the_table(folder):
    study = changed(folder, "peers", peers={"b32": {"label": "CLIP B/32", "model": "open_clip:ViT-B-32:openai"}})
    of_clip = {"settings": {"prompts": "eval/prompts_clip.yaml", "ensemble": "embedding"}, "image_size": 224}
    write(folder / "eval" / "b32" / "zero_shot" / "all.json", {"benchmarks": {"demo_food": task(0.3)}, **of_clip})
    notes = " ".join(tables_of(folder, study)["zero_shot"].notes)
    assert "Rows differ in prompts:" in notes and "eval/prompts_clip.yaml: CLIP B/32" in notes
    assert "mean vector: CLIP B/32" in notes
    assert "Rows differ" not in " ".join(tables_of(folder, changed(folder, "none", peers={}))["zero_shot"].notes)


def test_combine_and_average_of_incomplete_cells():
    missing = Cell(reason="not run: no x")
    assert combine([missing, Cell(0.5, 0.1, 10)]).value == 0.5
    assert combine([missing, missing]).reason == "not run: no x"
    # a mean over fewer would not compare
    assert average([Cell(0.5), missing], "task").reason == "not run: no x"
    both = average([Cell(0.2, ci95=[0.1, 0.3]), Cell(0.4, ci95=[0.3, 0.5])], "task")
    assert both.ci95 == pytest.approx([0.3 - 0.1 / 2**0.5, 0.3 + 0.1 / 2**0.5])


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_makes_its_tables(tmp_path, study):
    """Before anything has run, all tables are empty, each cell with a reason."""
    for table in tables_of(tmp_path, study).values():
        ours = [row.cells[column.key] for row in table.rows if row.kind == "ours" for column in table.columns]
        assert ours and all(cell.reason and cell.value is None for cell in ours)
        for form in FORMS:
            assert render(table.grid(), form)


@pytest.mark.usefixtures("one_training_is_enough")
def test_the_facts_of_an_efficiency_row_are_those_of_its_training(folder):
    """The study labels the row; what it trained is in its result."""
    result = cells(tables_of(folder)["efficiency_ablation"], "late-64")
    facts = [result[key].value for key in ("interaction", "embed_dim", "precision", "token_keep_ratio")]
    assert facts == ["token-wise", 64, "bf16", 1.0]
    other = training("late_64", folder, embed_dim=256, precision="fp16", token_keep_ratio=0.25)
    write(folder / "efficiency" / "late_64.json", other)
    result = cells(tables_of(folder)["efficiency_ablation"], "late-64")
    facts = [result[key].value for key in ("interaction", "embed_dim", "precision", "token_keep_ratio")]
    assert facts == ["token-wise", 256, "fp16", 0.25]


def test_a_row_that_keeps_a_part_of_its_tokens_says_so_in_its_label(folder):
    write(folder / "models" / "filip.json", training("filip", folder, token_keep_ratio=0.25))
    write(folder / "models" / "clip.json", training("clip", folder, interaction="pooled", token_keep_ratio=0.25))
    labels = [row.label for row in tables_of(folder)["zero_shot"].rows]
    assert labels == ["baseline (CLIP)", "FILIP (all) 100 % & more, 25 % of tokens"]


def test_a_variant_is_shown_below_the_ablation_and_does_not_count_as_its_last_row(folder):
    runs = {**STUDY["runs"], "all": {"label": "all tokens", "variant_of": "filip"}}
    study = changed(folder, "variant", runs=runs, tables={"component_ablation": ["clip", "late", "filip", "all"]})
    table = tables_of(folder, study)["component_ablation"]
    assert [row.section for row in table.rows] == ["", "", "", "our own variants"]
    assert "all" not in set(findings({table.name: table})["run"])
