"""The same tables in Markdown, HTML, LaTeX and CSV."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from filip.common.table_writer import Grid, Head, Line, Shown, differing, render
from filip.report.latex import latex
from filip.report.table import Table
from tests.report.results import STUDY, add_seeds, changed, tables_of, write_tables


def shown(table: Table, form: str) -> str:
    return latex(table.grid(paper=True)) if form == "latex" else render(table.grid(), form)


def test_the_command_writes_every_table_in_every_format(folder):
    write_tables(folder, f"out_dir={folder / 't'}")
    names = {p.name for p in (folder / "t").iterdir()}
    tables = ("zero_shot", "retrieval", "component_ablation", "efficiency_ablation")
    tables += ("model_sizes", "training_settings")
    assert names == {"tables.json"} | {f"{t}.{e}" for t in tables for e in ("md", "csv", "tex", "html")}
    content = json.loads((folder / "t" / "tables.json").read_text())["tables"]
    assert set(content) == set(tables)
    cell = content["retrieval"]["rows"][0]["cells"]["demo_fluent_i2t_r1"]
    assert (cell["value"], cell["chance"], cell["n"]) == (0.02, 1 / 1590, 1590)


def test_chance_and_the_number_of_images_are_said_once_a_column(folder):
    table = tables_of(folder)["retrieval"]
    for text in (shown(table, "markdown"), shown(table, "html"), shown(table, "latex")):
        assert "1,590" in text
    assert shown(table, "html").count(">0.063</td>") == 2  # R@1 both ways
    markdown = shown(table, "markdown")
    assert markdown.count("0.063") == 2 and markdown.count("| *chance* |") == 1


@pytest.mark.usefixtures("one_training_is_enough")
def test_a_difference_stands_below_its_row(folder):
    table = tables_of(folder)["retrieval"]
    less = table.rows[1].cells["demo_fluent_i2t_r1"].less
    assert less is not None and less.holds and less.effect == pytest.approx(0.03, abs=1e-3)
    effect = f"{100 * less.effect:+.1f}"
    ends = f"[{100 * less.interval[0]:.1f}, {100 * less.interval[1]:.1f}]"
    assert f"| *less baseline (CLIP)* | *{effect} {ends}* |" in shown(table, "markdown")
    assert f'<span class="up">{effect}</span><small>{ends}</small>' in shown(table, "html")
    rows = list(csv.DictReader(shown(table, "csv").splitlines()))
    result = next(r for r in rows if r["run"] == "filip" and r["column"] == "demo_fluent_i2t_r1")
    assert float(result["less"]) == less.effect and result["less_holds"] == result["leads"] == "True"


def test_latex_escapes_and_has_as_many_columns_in_each_line(folder):
    text = shown(tables_of(folder)["zero_shot"], "latex")
    assert r"FILIP (all) 100 \% \& more" in text
    # any engine can set it
    assert all(shown(table, "latex").isascii() for table in tables_of(folder).values())
    body = [line for line in text.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {3}


def written(folder: Path, name: str, *options: str) -> str:
    """Return a table as the command writes it for a paper."""
    write_tables(folder, f"out_dir={folder / 'paper'}", *options)
    return (folder / "paper" / f"{name}.tex").read_text()


@pytest.mark.usefixtures("one_training_is_enough")
def test_a_table_for_a_paper_has_neither_intervals_nor_differences(folder):
    add_seeds(folder)
    text = written(folder, "zero_shot")
    assert text.count("\\begin{table}") == text.count("\\begin{tabular}") == 1 and "10.0" in text
    assert not any(kind in text for kind in ("bootstrap", "Student's t", "standard deviation"))
    assert "[" not in text.split("toprule")[1]
    assert "less baseline" not in text and "With sign" not in text


@pytest.mark.usefixtures("one_training_is_enough")
def test_a_dagger_marks_a_value_whose_difference_holds(folder):
    text = written(folder, "retrieval")
    assert r"\textbf{5.0\textsuperscript{\dag}}" in text
    assert r"\textsuperscript{\dag}: the difference from the first row of the section holds" in text


def test_a_wide_table_for_a_paper_keeps_the_first_of_repeated_columns(folder):
    benchmarks = {**STUDY["eval"], "retrieval": ["demo_fluent", "demo_flat", "demo_unseen"]}
    wide = changed(folder, "wide", eval=benchmarks)
    text = written(folder, "retrieval", f"study={wide}")
    assert text.count("R@1") == 6 and "R@5" not in text and text.count("\\begin{tabular}") == 1
    assert "R@5" in (folder / "paper" / "retrieval.md").read_text()
    kept = json.loads((folder / "paper" / "tables.json").read_text())["tables"]["retrieval"]
    cells = kept["rows"][0]["cells"]
    assert cells["demo_fluent_i2t_r1"]["value"] is not None and cells["demo_fluent_i2t_r5"]["value"] is not None


def test_similarities_are_mathematics_and_labels_with_commas_are_quoted():
    notes = [f"Rows differ in size: {said}" for _, said in differing({"FILIP, smooth": {"": "96"}, "CLIP": {"": "24"}})]
    text = latex(Grid([Head("by s^I, %")], [Line("a_b", [Shown("1.0")])], "s^T", notes))
    assert "by $s^I$, \\%" in text and "\\caption{$s^T$}" in text and "a\\_b & 1.0" in text
    assert notes == ["Rows differ in size: 96: “FILIP, smooth”; 24: CLIP"]


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs: apt-get install texlive-latex-recommended")
def test_every_table_is_set_on_one_page_and_within_its_width(folder):
    add_seeds(folder)
    write_tables(folder, f"out_dir={folder / 'paper'}")
    for file in sorted((folder / "paper").glob("*.tex")):
        head = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}"
        file.write_text(f"{head}{file.read_text()}\\end{{document}}")
        command = ["pdflatex", "-interaction=batchmode", file.name]
        done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True)
        log = file.with_suffix(".log").read_text(errors="replace")
        assert done.returncode == 0 and "(1 page" in log, file.name
        assert "Overfull \\hbox" not in log and "too large for page" not in log, file.name
