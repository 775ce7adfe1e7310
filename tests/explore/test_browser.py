"""The page in a real browser: search, tokens, patches, two models, a phone, and not one request to anybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from bench.browser import NoBrowser, chromium
from filip.eval.scorer import load_scorer
from tests.explore.conftest import CAPTIONS, Prepared

pytestmark = pytest.mark.slow
DOG = CAPTIONS[2]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        with chromium() as found:
            yield found
    except NoBrowser as error:
        pytest.skip(str(error))


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


@pytest.fixture
def visit(browser: Browser, prepared: Prepared) -> Iterator[Visit]:
    found = Visit(browser, prepared.page.as_uri(), viewport={"width": 1400, "height": 1000})
    yield found
    assert found.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in found.requests), found.requests
    found.page.close()


def test_the_page_ranks_as_the_models_do(visit: Visit, prepared: Prepared) -> None:
    script = (
        "async text => (await app.feed.search(text)).models.map(m => m.order.map((image, i) => m.score(i)))"
    )
    for number, path in enumerate(prepared.models):
        scorer = load_scorer(path)
        pixels = torch.stack([scorer.transform(image) for image in prepared.pictures])
        exact = scorer.similarity(scorer.encode_images(pixels), scorer.encode_texts(CAPTIONS)).t2i
        for text, caption in enumerate(CAPTIONS):
            found = torch.tensor(visit.page.evaluate(script, caption)[number])
            assert torch.allclose(found, exact[:, text], atol=2e-3 if scorer.token_wise else 1e-5)
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
    page.fill("#text", "a caption that nobody wrote")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_contain_text("filip explore serve")
    assert visit.state("text") == DOG


def test_a_hostile_caption_is_text(visit: Visit) -> None:
    visit.page.evaluate("text => app.search(text)", CAPTIONS[4])
    expect(visit.page.locator("#text")).to_have_value(CAPTIONS[4])
    expect(visit.page.locator("img[src=x]")).to_have_count(0)


def test_a_token_has_its_heat_on_every_picture_and_a_patch_its_words(visit: Visit) -> None:
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
        assert all(
            visit.ink(f".model:nth-child({panel + 1}) li:nth-child({n}) .card canvas") > 0
            for n in range(1, 7)
        )
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
    rows = visit.page.locator(".model:last-child .why tbody td.share").all_inner_texts()
    total = visit.page.locator(".model:last-child .why tfoot td.share").inner_text()
    number = lambda text: float(text.replace("−", "-"))  # noqa: E731
    assert len(rows) > 5 and abs(sum(map(number, rows)) - number(total)) < 0.001 * len(rows)
    assert visit.page.locator(".model:first-child .why td.share").count() == 0, (
        "a pooled score is no sum over words"
    )


def test_numbers_are_drawn_and_the_address_brings_everything_back(
    browser: Browser, visit: Visit, prepared: Prepared
) -> None:
    page = visit.page
    before = visit.ink(".model:last-child .large canvas")
    page.keyboard.press("v")
    assert visit.state("view") == "numbers" and visit.ink(".model:last-child .large canvas") != before
    page.locator(".model:first-child .card").nth(3).click()
    page.locator(".model:first-child .card").nth(3).press("ArrowRight")
    page.locator("#theme").click()
    page.locator(".model:last-child .large").press("ArrowDown")
    expect(page.locator(".why h3").first).to_contain_text("Row 1, column 1")
    again = Visit(browser, page.url)
    assert again.page.evaluate("app.state") == page.evaluate("app.state")
    assert again.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert again.state("image") == page.evaluate("app.result.models[0].order[4]")
    again.page.close()
    assert all(page.locator("img").evaluate_all("images => images.map(i => i.alt !== '')"))


def test_the_page_fits_a_phone_in_the_dark(browser: Browser, prepared: Prepared) -> None:
    phone = Visit(
        browser,
        prepared.page.as_uri(),
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        has_touch=True,
    )
    page = phone.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    left, right = (page.locator(".model").nth(n).bounding_box() for n in range(2))
    assert left and right and left["y"] == right["y"] and right["x"] >= left["x"] + left["width"], (
        "beside each other"
    )
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, background.removeprefix("rgb(").removesuffix(")").split(","))) < 60
    page.locator("#chips .chip").nth(2).tap()
    assert phone.state("token") is not None or phone.state("name") is not None
    assert phone.complaints == []
    page.close()
