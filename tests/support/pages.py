"""A page of ours in a real browser, as everybody should see it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from tests.support.browser import chromium


def opened(page: Path, *views: dict[str, Any]) -> Iterator[Page]:
    """Yield a page in each view (``width`` and more of Playwright's), with its folds open.

    It is no wider than the view, asks nobody and complains of nothing.
    """
    with chromium() as browser:
        for view in views:
            width, rest = view["width"], {name: value for name, value in view.items() if name != "width"}
            tab = browser.new_page(viewport={"width": width, "height": 900}, **rest)
            tab.set_default_timeout(120_000)
            heard: list[str] = []
            tab.on("console", lambda message, heard=heard: heard.append(message.text))
            tab.on("request", lambda request, heard=heard: heard.append(request.url))
            tab.goto(page.as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
            assert [line for line in heard if not line.startswith(("file:", "data:"))] == []
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            yield tab
            tab.close()
