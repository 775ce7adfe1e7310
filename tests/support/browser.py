"""A headless Chromium and a Firefox for what has to be seen: tests and screenshots of pages that we write.

Nothing is installed here: without a browser, tests skip and say which command installs one.
"""

import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, sync_playwright

# The system's (Debian, Ubuntu: `apt-get install chromium`), before the one that `playwright install` downloads.
NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome-stable", "google-chrome")
HOW = "install one with `apt-get install chromium` or `playwright install --with-deps chromium`"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser, closed at the end; the test is skipped if there is none that starts."""
    system = next((path for name in NAMES if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        try:
            # Root, as in a container, has no sandbox; all pages are ours.
            browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no Chromium that starts ({str(error).splitlines()[0]}): {HOW}")
        try:
            yield browser
        finally:
            browser.close()


class Firefox:
    """A page in the system's Firefox, through Marionette, which every Firefox has and which needs no driver: Playwright
    drives only the Firefox that it brings, or version 143 and later, and Debian's is 140."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.answers = connection, connection.makefile("rb")
        self._receive()  # the greeting
        self.call("WebDriver:NewSession", timeouts={"script": 300_000, "pageLoad": 300_000})

    def goto(self, address: str) -> None:
        self.call("WebDriver:Navigate", url=address)

    def evaluate(self, function: str, argument: Any = None) -> Any:
        """Call an async function in JavaScript and return its value. It sees the page's window, not its constants."""
        script = f"""const [argument, done] = arguments;
            ({function})(argument).then((value) => done([value]), (error) => done(String(error)));"""
        value = self.call("WebDriver:ExecuteAsyncScript", script=script, args=[argument])["value"]
        if isinstance(value, str):
            raise RuntimeError(f"the page: {value}")
        return value[0]

    def call(self, command: str, **parameters: Any) -> Any:
        message = json.dumps([0, 1, command, parameters]).encode()
        self.connection.sendall(b"%d:%s" % (len(message), message))
        _, _, error, result = self._receive()
        if error:
            raise RuntimeError(f"{command}: {error['message']}")
        return result

    def _receive(self) -> Any:
        length = b"".join(iter(lambda: self.answers.read(1), b":"))
        return json.loads(self.answers.read(int(length)))


@contextmanager
def firefox() -> Iterator[Firefox]:
    """Yield a page of a Firefox, closed at the end; the test is skipped if there is none that starts."""
    program = shutil.which("firefox-esr") or shutil.which("firefox")
    if program is None:
        pytest.skip("no Firefox: install one with `apt-get install firefox-esr`")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        (Path(profile) / "user.js").write_text('user_pref("marionette.port", 0);\n')
        command = [program, "--headless", "--no-remote", "--marionette", "--profile", profile]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        try:
            file, until = Path(profile) / "MarionetteActivePort", time.monotonic() + 120
            while not file.exists() or not (port := file.read_text()):
                if process.poll() is not None or time.monotonic() > until:
                    pytest.skip("no Firefox that starts: install one with `apt-get install firefox-esr`")
                time.sleep(0.1)
            with socket.create_connection(("127.0.0.1", int(port))) as connection:
                yield Firefox(connection)
        finally:
            process.terminate()
            process.wait()
