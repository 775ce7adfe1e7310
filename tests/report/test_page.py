"""The report's page: what it shows of wins, ties and losses, and that it stands by itself."""

import re
from pathlib import Path
from typing import Any

import pytest

from filip.cli.command import run_command
from filip.report import differences
from filip.report.findings import findings
from filip.report.page import Page, main
from filip.report.plots import MUTED, forest
from filip.report.style import COLOURS, colours_of
from filip.study import load_study
from tests.report.results import STUDY, changed, tables_of, write, write_results, write_tables
from tests.support.browser import chromium

WHOLE = STUDY["runs"]["filip"]["label"]


def render(folder: Path, *arguments: str) -> str:
    write_tables(folder, *arguments)
    run_command(main, Page, argv=[f"results={folder}", *arguments])
    return (folder / "report.html").read_text(encoding="utf-8")


def found(folder: Path, *columns: str, study: Path | None = None) -> list[list[Any]]:
    frame = findings(tables_of(folder, study))
    return frame[frame["area"] != "Component ablation"][list(columns)].values.tolist()


@pytest.mark.usefixtures("one_training_is_enough")
def test_a_finding_is_a_row_with_its_difference_interval_and_p(folder):
    assert found(folder, "area", "base", "row", "holds") == [
        [area, "baseline (CLIP)", WHOLE, True] for area in ("Zero-shot classification",) + ("Image-text retrieval",) * 2
    ]
    (_, to_text, _) = found(
        folder, "measure", "base_value", "value", "difference", "difference_low", "difference_high", "p"
    )
    assert to_text[:4] == ["Fluent emoji, image → text: R@1", 0.02, 0.05, pytest.approx(0.03, abs=1e-3)]
    assert 0 < to_text[4] < to_text[3] < to_text[5] and to_text[6] < 0.05
    cell = tables_of(folder)["retrieval"].rows[1].cells["demo_fluent_i2t_r1"]
    assert to_text[3:] == [cell.less.effect, *cell.less.interval, cell.less.p]


def test_without_outcomes_nothing_is_claimed(folder):
    for file in folder.rglob("*.npz"):
        file.unlink()
    assert found(folder, "difference") == []


def test_a_study_of_one_run_says_what_it_reaches(folder):
    study = changed(folder, "one", tables={"retrieval": ["filip"]}, fine_tune={}, efficiency={})
    assert found(folder, "value", study=study) == []
    page = render(folder, f"study={study}")
    assert "5.0<small>[4.5, 5.5]</small>" in page and 'aria-label="Paired differences"' not in page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("whole") / "small"
    write_results(folder)
    return folder, render(folder)


def test_the_page_asks_no_other_host_and_runs_no_script(whole):
    page = whole[1]
    assert "<script" not in page and "@import" not in page
    sources = re.findall(r'(?:src|xlink:href)="([^"]+)"', page) + re.findall(r"url\(([^)]+)\)", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    links = set(re.findall(r'<a [^>]*href="([^"]+)"', page))
    assert links == {"https://example.org/noto", "https://example.org/licence"}


def test_the_plot_of_differences_shows_each_in_the_colour_of_the_run_that_is_ahead_if_it_holds(folder, monkeypatch):
    for fewest, colour in ((1, COLOURS[2]), (3, MUTED)):
        monkeypatch.setattr(differences, "FEWEST", fewest)
        frame = findings(tables_of(folder))
        (axis,) = forest(frame, colours_of(load_study(None, folder))).axes
        bars, dots = axis.lines[0:-1:2], axis.lines[1:-1:2]
        expected = 100 * frame[["difference_low", "difference", "difference_high"]].to_numpy(float)
        assert [
            [bar.get_xdata()[0], *dot.get_xdata(), bar.get_xdata()[1]] for bar, dot in zip(bars, dots, strict=True)
        ] == [pytest.approx(ends) for ends in expected.tolist()]
        assert {dot.get_markeredgecolor() for dot in dots} == {colour}


def test_the_page_of_a_study_that_has_not_run_says_so(tmp_path):
    write(tmp_path / "study.json", STUDY)
    page = render(tmp_path)
    assert "Nothing has been evaluated yet." in page and 'aria-label="Paired differences"' not in page
    assert "not run: no" in page


def test_the_page_credits_whoever_the_licences_require(whole):
    page = whole[1]
    assert "Noto &lt;Emoji&gt;" in page and "Google Inc" in page and 'href="https://example.org/licence"' in page
    assert re.search(r"· not english</th>.*?<td>7</td>", page)


@pytest.mark.system
def test_in_a_browser_nothing_is_cut_off_on_a_phone_and_nobody_is_asked(whole):
    views = [(1400, "light", "rgb(251, 250, 248)"), (390, "dark", "rgb(20, 22, 26)")]
    with chromium() as browser:
        for width, scheme, paper in views:
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.set_default_timeout(120_000)
            heard: list[str] = []
            tab.on("console", lambda message, heard=heard: heard.append(message.text))
            tab.on("request", lambda request, heard=heard: heard.append(request.url))
            tab.goto((whole[0] / "report.html").as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
            assert [line for line in heard if not line.startswith(("file:", "data:"))] == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == paper
