"""The same tables in Markdown, HTML, LaTeX and CSV."""

import csv
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from filip.common.table_writer import Grid, Head, Line, Shown, render
from filip.report.style import page
from filip.report.table import Table
from tests.report.results import STUDY, changed, tables_of, write_tables


def shown(table: Table, form: str) -> str:
    return render(table.grid(), form)


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data + " "


def test_the_command_writes_every_table_in_every_format(folder):
    write_tables(folder, f"out_dir={folder / 't'}")
    names = {p.name for p in (folder / "t").iterdir()}
    tables = ("zero_shot", "retrieval", "component_ablation", "efficiency_ablation")
    tables += ("model_sizes", "training_settings", "prompts")
    assert names == {"tables.json"} | {f"{t}.{e}" for t in tables for e in ("md", "csv", "tex", "html")}
    content = json.loads((folder / "t" / "tables.json").read_text())["tables"]
    assert set(content) == set(tables)
    cell = content["retrieval"]["rows"][0]["cells"]["demo_fluent_i2t_r1"]
    assert (cell["value"], cell["chance"], cell["n"]) == (0.02, 1 / 1590, 1590)


def test_every_format_shows_the_same_figures(folder):
    for table in tables_of(folder).values():
        reader = Cells()
        whole = page(table.title, shown(table, "html"))
        reader.feed(whole)
        assert reader.open == []  # every tag is closed
        assert "http://" not in whole and "https://" not in whole and "<script" not in whole  # self-contained
        latex = [line for line in shown(table, "latex").splitlines() if line.endswith("\\\\")]
        markdown = shown(table, "markdown")
        for row in table.rows:
            of_paper = row.kind == "paper" and not row.section.startswith("published")
            name = row.label + (" (published)" if of_paper else "")
            in_html = next(r for r in reader.rows if r and r[0].strip() == name)
            label = name.replace("*", r"\*")
            in_markdown = [line for line in markdown.splitlines() if line.startswith(f"| {label} |")]
            for column in table.columns:
                value = row.cells[column.key].value
                if isinstance(value, float) and column.unit == "percent":
                    text = f"{100 * value:.1f}"
                    assert any(text in c for c in in_html) and any(text in line for line in in_markdown)
                    assert any(text in line for line in latex)


def test_chance_and_the_number_of_images_are_said_once_a_column(folder):
    table = tables_of(folder)["retrieval"]
    for text in (shown(table, "markdown"), shown(table, "html"), shown(table, "latex")):
        assert "1,590" in text
    assert shown(table, "html").count(">0.063</td>") == 2  # R@1 both ways
    markdown = shown(table, "markdown")
    assert markdown.count("0.063") == 2 and markdown.count("| *chance* |") == 2


@pytest.mark.usefixtures("one_training_is_enough")
def test_a_difference_stands_below_its_row(folder):
    table = tables_of(folder)["retrieval"]
    less = table.rows[1].cells["demo_fluent_i2t_r1"].less
    assert less is not None and less.holds and less.effect == pytest.approx(0.03, abs=1e-3)
    effect = f"{100 * less.effect:+.1f}"
    ends = f"[{100 * less.interval[0]:.1f}, {100 * less.interval[1]:.1f}]"
    assert f"| *less baseline (CLIP)* | *{effect} {ends}* |" in shown(table, "markdown")
    assert f'<span class="up">{effect}</span><small>{ends}</small>' in shown(table, "html")
    cell = f"{effect} & \\textsuperscript{{\\dag}}{{\\scriptsize {ends}}}"
    assert f"\\textit{{less baseline (CLIP)}} & {cell}" in shown(table, "latex")
    rows = list(csv.DictReader(shown(table, "csv").splitlines()))
    result = next(r for r in rows if r["run"] == "filip" and r["column"] == "demo_fluent_i2t_r1")
    assert float(result["less"]) == less.effect and result["less_holds"] == result["leads"] == "True"


def test_why_cells_are_empty_is_said_once_below_the_table(folder):
    table = tables_of(folder)["component_ablation"]
    for form, mark in (("html", "<sup>a</sup>"), ("markdown", "<sup>a</sup>"), ("text", "(a)")):
        text = shown(table, form)
        assert text.count(mark) == 4 and len(re.findall(r"\ba: not run: no", text)) == 1


def test_csv_has_one_line_per_cell(folder, tmp_path):
    table = tables_of(folder)["component_ablation"]
    rows = list(csv.DictReader(shown(table, "csv").splitlines()))
    assert len(rows) == len(table.rows) * len(table.columns)
    first = next(r for r in rows if r["run"] == "filip" and r["column"] == "average")
    assert float(first["value"]) == pytest.approx(0.12)
    assert next(r for r in rows if r["run"] == "late")["reason"].startswith("not run")


def test_latex_escapes_and_has_as_many_columns_in_each_line(folder):
    text = shown(tables_of(folder)["zero_shot"], "latex")
    assert r"FILIP (all) 100 \% \& more" in text
    # any engine can set it
    assert all(shown(table, "latex").isascii() for table in tables_of(folder).values())
    assert any("p $<$ 0.05" in shown(table, "latex") for table in tables_of(folder).values())
    body = [line for line in text.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {6}  # three columns, an interval beside each


def lacking(*packages: str) -> list[str]:
    """Return the packages of LaTeX that are not here."""
    if not shutil.which("pdflatex"):
        return ["pdflatex"]
    return [name for name in packages if subprocess.run(["kpsewhich", f"{name}.sty"], capture_output=True).returncode]


@pytest.mark.parametrize(
    ("form", "packages"), [("latex", ["booktabs"]), ("siunitx", ["booktabs", "siunitx", "threeparttable"])]
)
def test_latex_is_set_within_the_width_of_a_page(folder, tmp_path, form, packages):
    if missing := lacking(*packages):
        pytest.skip(f"no {missing[0]} here")
    for name, table in tables_of(folder).items():
        head = f"\\documentclass{{article}}\\usepackage{{{','.join(packages)}}}\\begin{{document}}"
        (tmp_path / f"{name}.tex").write_text(head + shown(table, form) + "\\end{document}")
        done = subprocess.run(
            ["pdflatex", "-interaction=batchmode", f"{name}.tex"], cwd=tmp_path, capture_output=True, text=True
        )
        log = (tmp_path / f"{name}.log").read_text(errors="replace")
        assert done.returncode == 0 and "Overfull \\hbox" not in log and "too large for page" not in log, name


def test_siunitx_sets_numbers_in_its_columns_and_texts_in_braces():
    cells = [Shown("+35.3", "[24.6, 46.0]", tone="up"), Shown("−1.5", bold=True), Shown("1,000"), Shown(reason="why")]
    lines = [Line("less", [cell]) for cell in cells]
    text = render(Grid([Head("R@1")], lines, notes=["a note"]), "siunitx")
    assert "lS[table-format=+2.1,retain-explicit-plus,detect-weight]@{\\,}l}" in text
    assert "less & +35.3 & \\textsuperscript{\\dag}{\\scriptsize [24.6, 46.0]} \\\\" in text
    assert "less & \\bfseries -1.5 &  \\\\" in text and "less & \\multicolumn{1}{r}{1,000} &  \\\\" in text
    assert "{r}{\\textsuperscript{a}}" in text and "\\raggedright\n\\item a note" in text


def test_a_wide_latex_table_is_cut_between_benchmarks(folder):
    benchmarks = {**STUDY["eval"], "retrieval": ["demo_fluent", "demo_flat", "demo_unseen"]}
    table = tables_of(folder, changed(folder, "wide", eval=benchmarks))["retrieval"]
    text = shown(table, "latex")
    blocks = text.split("\\begin{tabular}")[1:]
    assert [block.splitlines()[0].count("r") for block in blocks] == [3] * 6
    assert "FILIP, fine-tuned" in blocks[0] and "FILIP, fine-tuned" not in blocks[5]  # nothing to show there
    assert "Unseen concepts" not in blocks[0] and "Unseen concepts" in blocks[5]
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\caption") == 6
