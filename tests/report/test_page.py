"""The report's page: what it says of wins, ties and losses, and that it stands by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bench.browser import NoBrowser, chromium
from filip.command import run_command
from filip.eval.outcomes import Outcomes, write_outcomes
from filip.report import page as module
from filip.report.figures import Figures
from filip.report.figures import main as draw
from filip.report.findings import comparisons, findings, tally, verdict
from filip.report.looks import COLOURS, looks
from filip.report.page import Page, inline_svg, main
from filip.report.provenance import stage_groups
from filip.study import Study, load_study
from tests.report.results import (
    STUDY,
    changed,
    recalls,
    tables_of,
    task,
    write,
    write_recalls,
    write_tables,
    write_tasks,
)

WHOLE = STUDY["runs"]["filip"]["label"]
SVG = "{http://www.w3.org/2000/svg}"


def render(folder: Path, *arguments: str) -> str:
    write_tables(folder, *arguments)
    run_command(main, Page, argv=[f"results={folder}", *arguments])
    return (folder / "report.html").read_text(encoding="utf-8")


def drawings(page: str) -> Iterator[ElementTree.Element]:
    for text in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        yield ElementTree.fromstring(text)  # raises unless it is well formed


# ---- the verdict ---------------------------------------------------------------------------------------


def test_the_verdict_names_what_is_better_and_nothing_else(folder):
    found = findings(tables_of(folder))
    assert [f.area.title for f in found] == ["Retrieval", "Zero-shot"]
    assert verdict(found) == (
        f"{WHOLE} is better than baseline (CLIP) at retrieval (+3.0) and zero-shot classification (+4.5)."
    )


def test_a_tie_is_not_a_win_and_a_loss_is_said(folder):
    write_tasks(folder, "filip", {"demo_food": task(0.11), "demo_animals": task(0.053, 300, 130)})
    write_recalls(folder, "filip", recalls(0.005))
    said = verdict(findings(tables_of(folder)), 1.25)
    assert said == (
        f"{WHOLE} is worse than baseline (CLIP) at retrieval (−1.5). At zero-shot classification (+0.7) no difference "
        "holds. A training step takes 1.25 times as long."
    )


def test_an_effect_that_intervals_hide_is_told_and_a_null_is_not(folder):
    """Marginal intervals of both pairs overlap; only the paired difference tells them apart."""
    rng = np.random.default_rng(1)
    hard = rng.random(1590) < 0.3
    luck = [rng.random(1590) < 0.02 for _ in range(4)]
    hits = {
        "clip": {"i2t": hard ^ luck[0], "t2i": hard ^ luck[1]},
        "filip": {"i2t": (hard ^ luck[2]) | (rng.random(1590) < 0.04), "t2i": hard ^ luck[3]},
    }
    keys = [f"s{n}" for n in range(1590)]
    for run, ways in hits.items():
        file = folder / "eval" / run / "retrieval.json"
        found = recalls(0.3)
        for way, values in ways.items():
            found[way]["r1"] = float(values.mean())
        write(file, {"benchmarks": {"demo_fluent": found}})
        ranks = ("r1", "r5", "r10")
        write_outcomes(
            file,
            {f"demo_fluent.{way}": Outcomes.of(keys, dict.fromkeys(ranks, v)) for way, v in ways.items()},
        )
    compared = [c for c in comparisons(tables_of(folder)) if c.group.startswith("Retrieval")]
    assert [(c.label.rpartition(", ")[2], c.less.holds) for c in compared] == [
        ("image → text", True),
        ("text → image", False),
    ]
    assert abs(compared[0].less.effect) < 0.045 and tally(compared) == (1, 0, 1)


def test_without_outcomes_nothing_is_claimed(folder):
    for file in folder.rglob("*.npz"):
        file.unlink()
    said = verdict(findings(tables_of(folder)))
    assert "cannot be compared" in said and "better" not in said and "worse" not in said


def test_a_study_of_one_run_says_what_it_reaches(folder):
    study = changed(folder, "one", tables={"retrieval": ["filip"]}, fine_tune={}, efficiency={})
    said = verdict(findings(tables_of(folder, study)))
    assert (
        said
        == f"{WHOLE} reaches 5.0 % at retrieval (chance 0.063 %); there is no other run to compare it with."
    )


# ---- the page ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    from tests.report.results import write_results

    folder = tmp_path_factory.mktemp("whole") / "small"
    write_results(folder)
    scene = {
        "kind": "Best",
        "caption": [{"word": "a", "colour": None}, {"word": "dog", "colour": [213, 94, 0]}],
    }
    seen = [
        {"label": label, "right": n, "names": 3, "picture": "AAAA"}
        for n, label in enumerate(("CLIP", "FILIP"))
    ]
    scenes = {"title": "Where", "rule": "by rule", "scenes": [{**scene, "picture": "AAAA", "models": seen}]}
    write(folder / "eval" / "scenes_compared.json", scenes)
    write(folder / "explore.html", "<p>")
    write_tables(folder)
    run_command(draw, Figures, argv=[f"results={folder}"])
    run_command(main, Page, argv=[f"results={folder}"])
    return folder, (folder / "report.html").read_text(encoding="utf-8")


def test_the_first_screen_has_verdict_tiles_plot_scenes_and_the_way_to_the_explorer(whole):
    page = whole[1]
    order = [
        'class="verdict"',
        'href="explore.html"',
        'class="tiles"',
        'class="forest',
        "CLIP: 0 of 3",
        "<details>",
    ]
    places = [page.index(part) for part in order]
    assert places == sorted(places)
    assert page.count("<article>") == 3  # retrieval, zero-shot, cost: what it has measured
    assert "1.50 ×" not in page and "0.3 s" in page  # both trainings took as long
    assert "is better than baseline (CLIP) at retrieval" in page.replace("&amp;", "&")


def test_the_page_asks_no_other_host_and_runs_no_script(whole):
    page = whole[1]
    assert "<script" not in page and "@import" not in page
    sources = re.findall(r'(?:src|xlink:href)="([^"]+)"', page) + re.findall(r"url\(([^)]+)\)", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    links = set(re.findall(r'<a [^>]*href="([^"]+)"', page))
    assert links == {"explore.html", "https://example.org/noto", "https://example.org/licence"}


def test_every_drawing_is_well_formed_and_no_two_share_an_id(whole):
    found = list(drawings(whole[1]))
    assert len(found) >= 8  # the plot twice, the stages, five figures and the funnel
    ids = [node.get("id") for drawing in found for node in drawing.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    forest = next(d for d in found if d.get("class") == "forest wide")
    dots = list(forest.iter(f"{SVG}circle"))
    texts = [node.text for node in forest.iter(f"{SVG}text")]
    assert len(dots) == len([t for t in texts if t and "[" in t]) > 4


def test_figures_follow_light_and_dark_in_one_colour_a_run(whole):
    folder, page = whole
    curves = (folder / "figures" / "loss_curves.svg").read_text()
    assert COLOURS[0] in curves and COLOURS[2] in curves  # clip and filip; late was not trained
    inline = inline_svg(curves, "x")
    assert "var(--run0)" in inline and "var(--run2)" in inline and not re.search("|".join(COLOURS), inline)
    assert not any(
        colour in drawing for colour in COLOURS for drawing in re.findall(r"<svg.*?</svg>", page, re.S)
    )


def test_a_fine_tuning_and_an_efficiency_row_have_the_colour_of_their_run():
    look = looks(Study({**STUDY, "seeds": 2}))
    assert look["filip_ft"].number == look["filip"].number == look["filip_s1"].number == 2
    assert look["filip_ft"].line != look["filip"].line
    assert look["orig"].number == look["clip"].number and look["gone"].number == look["late"].number


def test_what_tables_share_is_said_once(whole):
    assert whole[1].count("With sign: the difference from the first row") == 1


def test_pictures_beyond_the_limit_are_linked_not_embedded(folder, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (300, 900, 3), dtype=np.uint8)
    (folder / "figures").mkdir()
    Image.fromarray(noise).save(folder / "figures" / "augmentation.png")
    embedded = render(folder)
    assert "data:image/webp" in embedded
    monkeypatch.setattr(module, "LARGEST", 1000)
    page = render(folder)
    assert "data:image/webp" not in page and 'href="figures/augmentation.png"' in page


def test_the_page_of_a_study_that_has_not_run_says_so(tmp_path):
    write(tmp_path / "study.json", STUDY)
    page = render(tmp_path)
    assert "Nothing has been evaluated yet." in page and 'class="forest' not in page
    assert "not run: no" in page


def test_the_page_credits_whoever_the_licences_require(whole):
    page = whole[1]
    assert (
        "Noto &lt;Emoji&gt;" in page and "Google Inc" in page and 'href="https://example.org/licence"' in page
    )
    assert "not english 7, repeated 3" in page


def test_stages_stand_in_the_order_of_the_pipeline():
    seconds = {
        "train/filip": 150.0,
        "zero_shot/clip": 7.0,
        "download/demo": 30.0,
        "train/clip": 100.0,
        "tables": 2.0,
    }
    assert stage_groups(seconds) == [
        ("data", "download", 30.0),
        ("train", "train", 250.0),
        ("eval", "zero shot", 7.0),
        ("report", "tables", 2.0),
    ]


def test_the_config_on_the_page_is_the_study_s(whole):
    folder, page = whole
    shown = re.search(r"<pre>(.*?)</pre>", page, re.S)
    assert (
        shown
        and json.loads(shown[1].replace("&#34;", '"').replace("&amp;", "&"))
        == load_study(None, folder).config
    )


@pytest.mark.slow
def test_in_a_browser_nothing_is_cut_off_on_a_phone_and_nobody_is_asked(whole):
    try:
        with chromium() as browser:
            for width, scheme in ((1400, "light"), (390, "dark")):
                page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
                page.set_default_timeout(120_000)
                heard: list[str] = []
                page.on("console", lambda message, heard=heard: heard.append(message.text))
                page.on("request", lambda request, heard=heard: heard.append(request.url))
                page.goto((whole[0] / "report.html").as_uri())
                page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
                assert [line for line in heard if not line.startswith(("file:", "data:"))] == []
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                shown = page.evaluate(
                    "[...document.querySelectorAll('svg.forest')].map(s => s.getBoundingClientRect().width)"
                )
                assert sorted(value > 0 for value in shown) == [
                    False,
                    True,
                ]  # the wide plot or the narrow one
                paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
                page.close()
    except NoBrowser as error:
        pytest.skip(str(error))
