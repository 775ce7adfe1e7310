"""The page of a funnel shows samples of every rule, their pictures, and what training gets; also from a bucket."""

import base64
import io
import json
import re
from pathlib import Path

import fsspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.data.funnel import Fragment, write_fragment
from filip.report.funnel import FunnelPage, main
from tests.report.results import FUNNEL, write_images
from tests.support.pages import opened

SAMPLES = {
    "similarity > 0.3": [
        {"caption": "text <1>", "key": "000000001", "similarity": 0.123456, "shard": "00000"},
        {"caption": "gone", "key": "000099999", "similarity": 0.2, "shard": "00000"},
    ]
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write three stages, the last with samples that are stored, and shards of four pairs."""
    stages = [
        Fragment("text_rules", "demo", 100, 96, {"foreign": 4}, notes={"samples": {"foreign": ["<b>der Hund"]}}),
        Fragment("download", "demo", 96, 90, {"dns": 6}, notes={"examples": {"dns": ["http://a.b/c.jpg (no host)"]}}),
        Fragment("select", "demo", 90, 70, {"similarity > 0.3": 20}, notes={"samples": SAMPLES}),
    ]  # fmt: skip
    for stage in stages:
        write_fragment(tmp_path / f"{stage.stage}.json", stage)
    write_images(tmp_path)
    return tmp_path


def page_of(data: Path, *more: str) -> str:
    fragments = ",".join(str(data / f"{stage}.json") for stage in ("text_rules", "download", "select"))
    run_command(main, FunnelPage, argv=[f"fragments=[{fragments}]", f"out={data}/funnel.html", *more])
    return (data / "funnel.html").read_text()


def pictures(page: str) -> list[Image.Image]:
    result = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in result]


@pytest.mark.parametrize("in_a_bucket", [False, True])
def test_each_rule_has_its_samples_and_what_is_stored_its_picture(data: Path, in_a_bucket: bool) -> None:
    if in_a_bucket:
        tar = data / "shards" / "00000.tar"
        fsspec.filesystem("memory").pipe("/funnel/00000.tar", tar.read_bytes())
        tar.unlink()
        tar.symlink_to("memory://funnel/00000.tar")
    page = page_of(data, f"shards=[{data}/shards]", f"captions=[{data}/captions]", "count=3", "image_size=24")
    assert "&lt;b&gt;der Hund" in page and "http://a.b/c.jpg (no host)" in page
    assert "6 (6.2%)" in page and "90 of 96 pairs kept" in page
    assert "text &lt;1&gt;<small>similarity 0.123</small>" in page
    dropped, *trained = pictures(page)
    assert dropped.size == (40, 30) and dropped.getpixel((20, 15))[0] == pytest.approx(60, abs=12)
    assert [one.size for one in trained] == [(40, 30), (24, 24), (24, 24), (24, 24)] * 3
    reds = [one.getpixel((20, 15))[0] for one in trained[::4]]
    assert reds == [pytest.approx(red, abs=12) for red in (60, 120, 180)], "those with a translation first"
    assert re.findall(r"<small>→ (.*?)</small>", page) == [f"back-translated {i}" for i in (1, 2, 3)]


def test_without_shards_the_page_has_texts_and_draws_are_the_same_each_time(data: Path) -> None:
    assert pictures(page_of(data)) == [] and "text &lt;1&gt;" in page_of(data)
    shown = (f"shards=[{data}/shards]", f"captions=[{data}/captions]", "image_size=24")
    assert page_of(data, *shown) == page_of(data, *shown) != page_of(data, *shown, "crop_scale_min=0.9")


def test_a_merged_funnel_has_all_its_sources(tmp_path: Path) -> None:
    other = [{**stage, "source": "other"} for stage in FUNNEL]
    (tmp_path / "funnel.json").write_text(json.dumps({"stages": [*FUNNEL, *other]}))
    run_command(main, FunnelPage, argv=[f"fragments=[{tmp_path}/funnel.json]", f"out={tmp_path}/a.html"])
    page = (tmp_path / "a.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        f"{stage}: {source}" for source in ("demo", "other") for stage in ("Text rules", "Download", "Translate")
    ]
    with pytest.raises(UserError, match=r"shards=.*give one folder for each of demo, other"):
        main(FunnelPage(fragments=[f"{tmp_path}/funnel.json"], out="a.html", shards=["a"]))
    with pytest.raises(UserError, match=r"out=a\.pdf: the name must end in \.html"):
        main(FunnelPage(fragments=[], out="a.pdf"))


@pytest.mark.system
def test_in_a_browser_it_fits_a_phone_runs_no_script_and_asks_nobody(data: Path) -> None:
    page_of(data, f"shards=[{data}/shards]", f"captions=[{data}/captions]")
    for tab in opened(data / "funnel.html", {"width": 1440}, {"width": 390}):
        result = Axe().run(tab).response["violations"]
        assert not result, [(one["id"], one["nodes"][0]["html"][:200]) for one in result]
