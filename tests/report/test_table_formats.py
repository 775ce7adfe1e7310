"""The same tables in Markdown, HTML, LaTeX and CSV."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import pytest

from filip.report.formats.csv import to_csv
from filip.report.formats.html import to_html
from filip.report.formats.latex import to_latex
from filip.report.formats.markdown import to_markdown
from filip.report.formats.text import chance_text, letters
from tests.report.results import STUDY, changed, tables_of, write_tables


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
        page = to_html(table)
        reader.feed(page)
        assert reader.open == []  # every tag is closed
        assert "http://" not in page and "https://" not in page and "<script" not in page  # self-contained
        latex = [line for line in to_latex(table).splitlines() if line.endswith("\\\\")]
        markdown = to_markdown(table)
        for row in table.rows:
            in_html = next(r for r in reader.rows if r and r[0].strip() == row.label)
            label = row.label.replace("*", r"\*")
            in_markdown = [line for line in markdown.splitlines() if line.startswith(f"| {label} |")]
            for column in table.columns:
                value = table.cell(row, column).value
                if isinstance(value, float) and column.unit == "percent":
                    text = f"{100 * value:.1f}"
                    assert any(text in c for c in in_html) and any(text in line for line in in_markdown)
                    assert any(text in line for line in latex)


def test_chance_and_the_number_of_images_are_said_once_a_column(folder):
    table = tables_of(folder)["retrieval"]
    for text in (to_markdown(table), to_html(table), to_latex(table)):
        assert "1,590" in text
    assert to_html(table).count("chance 0.063") == 2  # R@1 both ways
    markdown = to_markdown(table)
    assert markdown.count("0.063") == 2 and markdown.count("| *chance* |") == 2


def test_markdown_is_narrow_enough_for_a_code_host(folder):
    """A table per benchmark, value and half of its interval: GitHub's column is about 120 characters wide."""
    benchmarks = {**STUDY["eval"], "retrieval": ["demo_fluent", "demo_flat", "demo_unseen"]}
    tables = tables_of(folder, changed(folder, "wide", eval=benchmarks))
    for name in ("retrieval", "zero_shot", "component_ablation"):
        lines = [line for line in to_markdown(tables[name]).splitlines() if line.startswith("| ")]
        assert max(map(len, lines)) < 140
        assert max(len(re.findall(r"(?<!\\)\|", line)) for line in lines) <= 7
    assert "| baseline (CLIP) | 2.0 ±0.5 | 6.0 ±0.5 | 8.0 ±0.5 |" in to_markdown(tables["retrieval"])


def test_a_difference_stands_below_its_row(folder):
    table = tables_of(folder)["retrieval"]
    less = table.rows[1].cells["demo_fluent_i2t_r1"].less
    assert less is not None and less.holds and less.effect == pytest.approx(0.03, abs=1e-3)
    shown = f"{100 * less.effect:+.1f} [{100 * less.interval[0]:.1f}, {100 * less.interval[1]:.1f}]"
    assert f"| *less baseline (CLIP)* | *{shown}* |" in to_markdown(table)
    assert f'<small class="up">{shown}</small>' in to_html(table)
    assert shown in to_latex(table)
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    found = next(r for r in rows if r["run"] == "filip" and r["column"] == "demo_fluent_i2t_r1")
    assert float(found["less"]) == less.effect and found["less_holds"] == found["leads"] == "True"


def test_neighbours_that_are_empty_for_the_same_reason_are_one_cell(folder):
    page = to_html(tables_of(folder)["component_ablation"])
    assert 'class="empty" colspan="4"' in page and 'class="empty" colspan="3"' in page
    assert page.count("<sup>a</sup>") == 2  # the cell and its footnote


def test_csv_has_one_line_per_cell(folder, tmp_path):
    table = tables_of(folder)["component_ablation"]
    rows = list(csv.DictReader(to_csv(table).splitlines()))
    assert len(rows) == len(table.rows) * len(table.columns)
    first = next(r for r in rows if r["run"] == "filip" and r["column"] == "average")
    assert float(first["value"]) == pytest.approx(0.12)
    assert next(r for r in rows if r["run"] == "late")["reason"].startswith("not run")


def test_latex_escapes_and_has_as_many_columns_in_each_line(folder):
    text = to_latex(tables_of(folder)["zero_shot"])
    assert r"FILIP (all) 100 \% \& more" in text
    assert all(to_latex(table).isascii() for table in tables_of(folder).values())  # any engine can set it
    body = [line for line in text.splitlines() if line.endswith("\\\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {3}


def test_a_wide_latex_table_is_cut_between_benchmarks(folder):
    benchmarks = {**STUDY["eval"], "retrieval": ["demo_fluent", "demo_flat", "demo_unseen"]}
    table = tables_of(folder, changed(folder, "wide", eval=benchmarks))["retrieval"]
    text = to_latex(table)
    blocks = text.split("\\begin{tabular}")[1:]
    assert [block[: block.index("}")].count("r") for block in blocks] == [12, 6]
    for block in blocks:
        assert all(label in block for label in ("baseline (CLIP)", "FILIP, fine-tuned"))
    assert "Unseen concepts" not in blocks[0] and "Unseen concepts" in blocks[1]
    assert text.count("\\begin{table}") == text.count("\\end{table}") == text.count("\\caption") == 1


def test_small_numbers():
    assert [letters(n) for n in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "a",
        "z",
        "aa",
        "ab",
        "az",
        "ba",
        "zz",
        "aaa",
    ]
    assert [chance_text(c) for c in (0.2, 0.0125, 1 / 1590)] == ["20.0", "1.2", "0.063"]
