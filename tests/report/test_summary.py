"""The summary: exactly the agreed keys, the funnel as the pipeline counted it, and a text of it."""

import json

import pytest

from filip.cli.command import run_command
from filip.common.table_writer import render
from filip.report.results import Results
from filip.report.show import Show
from filip.report.show import main as show
from filip.report.summary import Summary, main, search_grid
from filip.report.summary import summary as summarized
from filip.study import load_study
from tests.report.results import changed, write, write_tables


def test_the_summary_has_each_trials_score_the_best_values_and_what_was_measured_while_learning(folder):
    search = {"settings": {"optimizer.base_lr": [0.002, 0.004]}, "seeds": [100], "card": "demo_scenes_search"}
    study = changed(folder, "searched", search=search)
    for rate, recall in ((0.002, 0.2), (0.004, 0.3)):
        both = {f"eval/demo_scenes_search_{way}_r1": recall for way in ("i2t", "t2i")}
        result = {"config": {"seed": 100, "optimizer": {"base_lr": rate}}, "evaluated": both}
        write(folder / "models" / f"clip-{rate}_s100.json", result)
    point = {"step": 300, "time/seconds": 9.0, "eval/demo_scenes_new_i2t_r1": 0.5}
    write(folder / "runs" / "clip-00c0ffee" / "log.jsonl", f'{{"step": 300, "loss/total": 1}}\n{json.dumps(point)}\n')
    actual, results = load_study(study), Results(folder)
    content = summarized(actual, results, {})
    assert list(content["search"]) == ["clip"]  # the others' trials are not there
    assert content["search"]["clip"]["best"] == [0.004]
    assert content["search"]["clip"]["tried"][0] == {"values": [0.002], "scores": {100: pytest.approx(0.2)}}
    assert content["runs"]["clip"]["curve"] == [point]
    assert content["runs"]["clip"]["found"]["retrieval/demo_fluent_i2t_r1"] == pytest.approx(0.02)
    lines = render(search_grid(actual, content["search"]), "text")
    assert "base_lr 0.004" in lines and "30.0" in lines and "taken, at the edge of the grid" in lines


def test_the_headline_is_a_line_for_each_column_and_a_study_s_sentences_have_the_numbers(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    write_tables(folder)
    run_command(main, Summary, argv=[f"results={folder}"])
    run_command(show, Show, argv=[f"results={folder}"])
    assert 3 <= len(capsys.readouterr().out.splitlines()) <= 12
    study = json.loads((folder / "study.json").read_text())
    tables = json.loads((folder / "summary.json").read_text())["tables"]
    named = {name: tables[name]["columns"][-1]["key"] for name in ("retrieval", "zero_shot")}
    lead = {f"retrieval/{named['retrieval']}": "{filip} and {clip}", f"zero_shot/{named['zero_shot']}": "{nobody}"}
    chosen = study | {"headline": [f"{name}/{key}" for name, key in named.items()], "lead": lead}
    (folder / "study.json").write_text(json.dumps(chosen))
    run_command(show, Show, argv=[f"results={folder}"])
    lines = capsys.readouterr().out.splitlines()
    values = {row["run"]: row["cells"][named["retrieval"]]["value"] for row in tables["retrieval"]["rows"]}
    shown = [f"{100 * values[run]:.1f}" for run in ("clip", "filip", "filip_ft")]
    assert sum([word in shown for word in line.split()].count(True) >= 2 for line in lines) == 1
    assert lines[-1] == f"{100 * values['filip']:.0f} and {100 * values['clip']:.0f}", "nobody has no number"
    (folder / "study.json").write_text(json.dumps(study | {"headline": ["retrieval/nowhere"]}))
    with pytest.raises(SystemExit):
        run_command(show, Show, argv=[f"results={folder}"])
    assert "no column 'retrieval/nowhere'" in capsys.readouterr().err
