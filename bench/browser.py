"""A headless Chromium for what has to be seen: tests and screenshots of pages that we write."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Error, sync_playwright

# The system's (Debian, Ubuntu: `apt-get install chromium`), before the one that `playwright install` downloads.
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome-stable", "google-chrome")
HOW = "install one with `apt-get install chromium` or `playwright install --with-deps chromium`"


class NoBrowser(Exception):
    """There is no Chromium here; the message says how to get one."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, closed at the end. Raises NoBrowser if there is none that starts."""
    system = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            # Root, as in a container, has no sandbox; the pages are our own.
            browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except Error as error:
            first = str(error).splitlines()[0]
            raise NoBrowser(f"no Chromium that starts ({first}): {HOW}") from error
        try:
            yield browser
        finally:
            browser.close()
