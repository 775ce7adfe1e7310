"""The page of the model that comes with the package: texts and pictures that nobody made it for, in two browsers; and
what axe-core says of it."""

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from filip import load
from filip.api import Model
from filip.cli.command import run_command
from filip.common.errors import UserError
from filip.eval.scorer import load_scorer
from filip.explore.export import ExplorerExport
from filip.explore.export import main as export
from filip.explore.names import encode_query
from tests.eval.miniature import picture
from tests.support.browser import chromium, firefox
from tests.support.shards import encoded

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]
SCENES = sorted((ROOT / "docs/scenes").glob("*.png"))
CAPTIONS = [scene.with_suffix(".txt").read_text().strip() for scene in SCENES]

BUSY = "async () => { while (!app.result) await new Promise((go) => setTimeout(go, 5)); }"
SEARCH = "async (text) => (await app.feed.search(text)).models[0].order.slice(0, 2)"
DROP = """async (encoded) => {
    const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0)), before = app.uploads.length;
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], "photo.png", {type: "image/png"}));
    document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
    const done = () => app.uploads.length > before && !document.body.hasAttribute("aria-busy");
    while (!done()) await new Promise((go) => setTimeout(go, 5));
    return (await app.feed.textsOf(app.uploads[0], 2))[0]; }"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = tmp_path_factory.mktemp("any_words") / "page.html"
    run_command(
        export, ExplorerExport, argv=["models=[emoji]", f"images={ROOT / 'docs/scenes'}", "device=cpu", f"out={result}"]
    )
    assert result.stat().st_size < 16_000_000
    return result


@pytest.fixture(scope="module")
def model() -> Model:
    return load("emoji", device="cpu")


NAMES = ["Jowar", "Goosberry", "wapiti", "Rohu, Catla", "a snake"]  # of foods and animals; the model knows the last


def test_a_caption_of_which_the_model_knows_no_word_ranks_by_all_its_tokens(tmp_path: Path, model: Model) -> None:
    for scene, name in zip(SCENES, NAMES, strict=False):
        (tmp_path / scene.name).write_bytes(scene.read_bytes())
        (tmp_path / scene.name).with_suffix(".txt").write_text(name)
    out = tmp_path / "page.html"
    run_command(export, ExplorerExport, argv=["models=[emoji]", f"images={tmp_path}", "device=cpu", f"out={out}"])
    images, scorer = model.encode_images(SCENES[: len(NAMES)]), load_scorer("emoji")
    with pytest.raises(UserError, match="never learned “Jowar”"):
        encode_query(scorer, "Jowar")
    exact = torch.cat([scorer.similarity(images, encode_query(scorer, text, caption=True)).t2i for text in NAMES], 1)
    with chromium() as browser:
        view = browser.new_page()
        view.goto(out.as_uri())
        view.evaluate(BUSY)
        assert [view.evaluate(SEARCH, text)[0] for text in NAMES] == exact.argmax(0).tolist()
        view.evaluate("async () => app.search('Jowar')")
        assert view.locator(".chip.unseen").count() > 0
        assert "Never learned: jowar." in view.locator("#message").inner_text()
        view.evaluate("async () => app.search('Litchi')")  # nobody's caption
        assert "never learned “litchi”" in view.locator("#message").inner_text()


@pytest.mark.parametrize("opening", [chromium, firefox])
def test_twenty_dropped_pictures_find_the_captions_that_pytorch_finds(opening: Any, page: Path, model: Model) -> None:
    """None is in the page: its scenes at another size, cut and mirrored, and noise."""
    scenes = [Image.open(scene).convert("RGB").resize((150, 130)) for scene in SCENES]
    cut = [scene.crop((7, 0, 137, 121)).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for scene in scenes]
    pictures = [*cut, *(picture(seed, 150).resize((200, 131)) for seed in range(8))]
    exact = model.similarity(pictures, CAPTIONS).i2t
    assert len(pictures) == 20
    with opening() as browser:
        view = browser.new_page() if opening is chromium else browser
        view.goto(page.as_uri())
        view.evaluate(BUSY)
        for photo, scores in zip(pictures, exact, strict=True):
            shown = base64.b64encode(encoded(photo)).decode()
            (text, score), _ = view.evaluate(DROP, shown)
            assert text == CAPTIONS[int(scores.argmax())]
            torch.testing.assert_close(torch.tensor(score), scores.max(), atol=3e-3, rtol=0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_axe_finds_nothing_serious(page: Path, width: int, scheme: Any) -> None:
    with chromium() as browser:
        view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        view.goto(page.as_uri())
        view.wait_for_selector("body:not([aria-busy]) .card")
        result = Axe().run(view).response["violations"]
    serious = [(one["id"], one["impact"], len(one["nodes"])) for one in result]
    assert not [one for one in serious if one[1] in ("serious", "critical")], serious
