"""The page in a real browser: search, tokens, patches, two models, a phone, and not one request to anybody."""

import base64
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from filip.cli.command import run_command
from filip.eval.scorer import load_scorer
from filip.explore.export import ExplorerExport
from filip.explore.export import main as export
from filip.explore.names import encode_query
from filip.models import build_model, save_model
from tests.eval.miniature import picture, tiny_config
from tests.explore.conftest import CAPTIONS, FREE, Prepared, teach
from tests.support.browser import chromium
from tests.support.shards import encoded

pytestmark = pytest.mark.system
DOG = CAPTIONS[2]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as result:
        yield result


class Visit:
    """An open page, and what it complained about or asked for."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.page.set_default_timeout(60_000)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self.heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.settled()

    def heard(self, message: ConsoleMessage) -> None:
        if "getImageData" not in message.text:  # a warning about `ink` below
            self.complaints.append(message.text)

    def settled(self) -> None:
        self.page.wait_for_selector("body:not([aria-busy])")
        expect(self.page.locator(".card").first).to_be_visible(timeout=60_000)

    def state(self, key: str) -> Any:
        return self.page.evaluate(f"app.state.{key}")

    def ink(self, selector: str) -> int:
        """Return how many pixels of a canvas are drawn on."""
        script = """canvas => {
            const pencil = canvas.getContext("2d");
            const data = pencil.getImageData(0, 0, canvas.width, canvas.height).data;
            return data.filter((value, i) => i % 4 === 3 && value > 0).length; }"""
        return int(self.page.locator(selector).first.evaluate(script))


def drop(page: Page, image: Image.Image) -> None:
    """Drop a picture onto the page, as from a file manager."""
    script = """data => {
        const file = new File([Uint8Array.from(atob(data), letter => letter.charCodeAt(0))], "photo.png",
            {type: "image/png"});
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(file);
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true})); }"""
    page.evaluate(script, base64.b64encode(encoded(image)).decode())


@pytest.fixture
def visit(browser: Browser, prepared: Prepared) -> Iterator[Visit]:
    result = Visit(browser, prepared.page.as_uri(), viewport={"width": 1400, "height": 1000})
    yield result
    assert result.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in result.requests), result.requests
    result.page.close()


def test_the_page_ranks_as_the_models_do(visit: Visit, prepared: Prepared) -> None:
    """Its captions were scored before; texts that nobody wrote are encoded in the page."""
    script = """async text => (await app.feed.search(text)).models.map(m =>
        [m.order.map((image, i) => m.score(i)), m.tokens])"""
    for number, path in enumerate(prepared.models):
        scorer = load_scorer(path)
        pixels = torch.stack([scorer.transform(image) for image in prepared.pictures])
        images = scorer.encode_images(pixels)
        for text in [*CAPTIONS, *FREE]:
            scores, tokens = visit.page.evaluate(script, text)[number]
            assert tokens == scorer.encoder.tokens(text)
            exact = scorer.similarity(images, encode_query(scorer, text)).t2i[:, 0]
            assert torch.allclose(torch.tensor(scores), exact, atol=2e-3)
    # The way from an image to its captions has the other direction's score, s^I.
    i2t = scorer.similarity(scorer.encode_images(pixels[:1]), scorer.encode_texts(CAPTIONS)).i2t[0]
    listed = visit.page.evaluate("app.feed.textsOf(0, 6)")[1]
    assert [score for _, score in listed] == pytest.approx(
        [float(i2t[CAPTIONS.index(text)]) for text, _ in listed], abs=2e-3
    )


def test_a_caption_is_found_by_a_part_of_it_and_by_the_keyboard(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("/")
    page.keyboard.type("MACHINE")
    expect(page.locator("#choices [role=option]")).to_have_text([DOG])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#chips [data-token='2']")).to_contain_text("slot")
    assert visit.state("text") == DOG and "text=a+slot+machine" in page.url
    expect(page.locator(".model")).to_have_count(2)
    expect(page.locator(".own-rank").first).to_contain_text("of 6")
    expect(page.locator(".badge")).to_have_text(["its own", "its own"])
    assert visit.state("image") == 2, "the picture that it was written for is the one looked at first"
    page.go_back()
    expect(page.locator("#text")).to_have_value(CAPTIONS[0])
    assert visit.state("text") == CAPTIONS[0], "Back undoes a search"


def test_a_page_without_the_models_says_what_a_new_text_needs(browser: Browser, prepared: Prepared) -> None:
    out = prepared.folder / "captions.html"
    run_command(export, ExplorerExport, argv=[*prepared.options, "towers=none", f"out={out}"])
    visit = Visit(browser, out.as_uri())
    visit.page.fill("#text", "a caption that nobody wrote")
    visit.page.keyboard.press("Enter")
    expect(visit.page.locator("#message")).to_contain_text("needs a model")
    assert visit.state("text") == CAPTIONS[0] and not visit.page.locator("#upload").is_visible()
    visit.page.close()


def test_a_convolutional_stem_is_computed_in_the_page(browser: Browser, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = tiny_config()
    config.image = dataclasses.replace(config.image, stem="tf_efficientnet_lite0", image_size=64)
    model = build_model(config)
    teach(model, FREE)
    for norm in model.image.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 1.5)
    save_model(tmp_path / "m.safetensors", model)
    photos = tmp_path / "photos"
    photos.mkdir()
    picture(1, 64).save(photos / "a.png")
    out = tmp_path / "page.html"
    run_command(
        export, ExplorerExport, argv=[f"models=[{tmp_path / 'm.safetensors'}]", f"images={photos}", f"out={out}"]
    )
    visit = Visit(browser, out.as_uri())
    photo = picture(78, 90)
    drop(visit.page, photo)
    expect(visit.page.locator(".badge", has_text="yours")).to_have_count(1)
    scorer = load_scorer(str(tmp_path / "m.safetensors"))
    exact = scorer.encode_images(scorer.transform(photo)[None])[0].flatten()
    result = torch.tensor(visit.page.evaluate("Array.from(app.feed.models[0].uploads.get('u0').rows)"))
    torch.testing.assert_close(result, exact, atol=5e-3, rtol=0)
    assert visit.complaints == []
    visit.page.close()


def test_a_hostile_caption_is_text(visit: Visit) -> None:
    visit.page.evaluate("text => app.search(text)", CAPTIONS[4])
    expect(visit.page.locator("#text")).to_have_value(CAPTIONS[4])
    expect(visit.page.locator("img[src=x]")).to_have_count(0)


def test_a_token_is_marked_on_every_picture_and_a_patch_has_its_words(visit: Visit) -> None:
    page = visit.page
    page.evaluate("text => app.search(text)", DOG)
    chip = page.locator("#chips .chip[data-token='2']")
    expect(chip).to_be_visible()
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    page.mouse.move(0, 0)
    assert visit.state("token") == 2 and "token=2" in page.url
    expect(page.locator("#legend")).to_contain_text("slot")
    for panel in range(2):
        cards = page.locator(".model").nth(panel).locator(".card canvas")
        assert cards.count() == 6
        assert all(visit.ink(f".model:nth-child({panel + 1}) li:nth-child({n}) .card canvas") > 0 for n in range(1, 7))
    box = page.locator(".model:last-child .large").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    assert visit.state("patch") == 4 + 2, "second row, third column of four"
    expect(page.locator(".model:last-child .why h3")).to_contain_text("Row 2, column 3")
    assert page.locator(".model:last-child .why tbody tr").count() > 5
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert visit.state("patch") is None and visit.state("token") is None
    page.locator("#chips .whole").first.click()
    assert page.evaluate("app.result.models[1].names[app.state.name].label") == "shuttlecock"
    assert visit.state("token") is None


def test_the_words_of_a_score_add_up_to_it(visit: Visit) -> None:
    visit.page.evaluate("text => app.search(text)", DOG)
    expect(visit.page.locator("#chips .chip[data-token='2']")).to_be_visible()
    visit.page.locator(".model:last-child .reason > summary").click()
    rows = visit.page.locator(".model:last-child .why tbody td.share").all_inner_texts()
    total = visit.page.locator(".model:last-child .why tfoot td.share").inner_text()
    folded = visit.page.locator(".model:last-child .why details summary")
    expect(folded).to_have_text("5 tokens that name nothing: not counted")
    number = lambda text: float(text.replace("−", "-"))  # noqa: E731
    assert len(rows) > 5 and abs(sum(map(number, rows)) - number(total)) < 0.001 * len(rows)
    assert visit.page.locator(".model:first-child .why td.share").count() == 0, "a pooled score is no sum over words"


def test_the_page_fits_a_phone_in_the_dark(browser: Browser, prepared: Prepared) -> None:
    phone = Visit(
        browser, prepared.page.as_uri(), viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True
    )
    page = phone.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    left, right = (page.locator(".model").nth(n).bounding_box() for n in range(2))
    assert left and right and left["y"] == right["y"] and right["x"] >= left["x"] + left["width"], "side by side"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 60
    page.locator("#chips .chip").nth(2).tap()
    assert phone.state("token") is not None or phone.state("name") is not None
    assert phone.complaints == []
    page.close()
