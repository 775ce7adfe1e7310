"""A headless Chromium for what has to be seen: tests and screenshots of pages that we write.

``python -m bench.browser`` installs one if there is none: Playwright's own, or the system's where that cannot be
fetched and we are root, as in a container. It never fails: without a browser, tests skip and say so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from playwright.sync_api import Browser, Error, sync_playwright

# The system's (Debian, Ubuntu: `apt-get install chromium`), before the one that `playwright install` downloads.
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome-stable", "google-chrome")
HOW = "install one with `apt-get install chromium` or `playwright install --with-deps chromium`"


class NoBrowser(Exception):
    """The lack of a Chromium here; the message says how to get one."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser, closed at the end. Raises NoBrowser if there is none that starts."""
    system = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            # Root, as in a container, has no sandbox; all pages are ours.
            browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except Error as error:
            first = str(error).splitlines()[0]
            raise NoBrowser(f"no Chromium that starts ({first}): {HOW}") from error
        try:
            yield browser
        finally:
            browser.close()


def main() -> None:
    """Make sure that there is a browser, as far as this machine lets us."""
    attempts = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        install = [
            "apt-get",
            "install",
            "-y",
            "-q",
            "--no-install-recommends",
            "chromium",
            "fonts-dejavu-core",
        ]
        attempts += [["apt-get", "update", "-q"], install]
    reason = _missing()
    while reason and attempts:
        attempt = attempts.pop(0)
        print(f"== no Chromium yet: {' '.join(attempt)}", flush=True)
        quiet = subprocess.DEVNULL
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                attempt, stdin=quiet, stdout=quiet, stderr=quiet, env=environment, timeout=600, check=False
            )
        reason = _missing()
    print(f"== tests of pages will skip: {reason}" if reason else "== there is a Chromium for tests of pages")


def _missing() -> str:
    """Return why no browser starts; "" if one does."""
    try:
        with chromium():
            return ""
    except NoBrowser as error:
        return str(error)


if __name__ == "__main__":
    main()
