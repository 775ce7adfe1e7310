"""Apertium: rule-based translation, very fast (hundreds of round trips a second), where Debian's packages are.

apt-get install apertium apertium-eng-spa        # pivot es; apertium-eng-cat: pivot ca
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence

from filip.errors import UserError

LANGUAGES = {"es": "spa", "ca": "cat"}  # ISO 639-1 → what Apertium's modes call it
TIMEOUT, TIMEOUT_PER_LINE = 60.0, 0.05  # seconds; a line takes a thousandth


class Apertium:
    """Round trip through one pivot language, by one pass of the ``apertium`` command per direction and block."""

    def __init__(self, pivot: str, models: str | None = None) -> None:
        if pivot not in LANGUAGES:
            raise UserError(f"the engine apertium knows the pivots {', '.join(LANGUAGES)}, not '{pivot}'")
        other = LANGUAGES[pivot]
        self._modes = (f"eng-{other}", f"{other}-eng")
        packages = f"apt-get install apertium apertium-eng-{other}"
        if not shutil.which("apertium"):
            raise UserError(f"the engine apertium needs the command apertium: {packages}")
        listed = subprocess.run(
            ["apertium", "-l"], capture_output=True, text=True, check=False
        ).stdout.split()
        missing = [mode for mode in self._modes if mode not in listed]
        if missing:
            raise UserError(
                f"apertium has no mode {', '.join(missing)} (it has {', '.join(listed)}): {packages}"
            )
        self.model = "+".join((*self._modes, _version(f"apertium-eng-{other}")))

    def to_pivot(self, texts: Sequence[str]) -> list[str]:
        return _translate(self._modes[0], texts)

    def to_english(self, texts: Sequence[str]) -> list[str]:
        return _translate(self._modes[1], texts)


def _translate(mode: str, texts: Sequence[str]) -> list[str]:
    """One line each. Sentences without a full stop bleed into the next line: each gets one, and loses it again."""
    stopped = [text.rstrip().endswith((".", "!", "?")) for text in texts]
    lines = [text if stop else f"{text.rstrip()}." for text, stop in zip(texts, stopped, strict=True)]
    translated = _run(mode, lines)
    return [line if stop else line.removesuffix(".") for line, stop in zip(translated, stopped, strict=True)]


def _run(mode: str, lines: list[str]) -> list[str]:
    """As many lines as came in. A line that Apertium swallows, splits or chokes on becomes "", alone.

    Raises UserError when not one comes back.
    """
    translated, problem = _pipeline(mode, "\n".join(lines) + "\n")
    if len(translated) == len(lines):
        return translated
    if len(lines) > 1:
        half = len(lines) // 2
        return _run(mode, lines[:half]) + _run(mode, lines[half:])
    if _pipeline(mode, "a house.\n")[0]:
        return [""]  # this line is the reason: the guard will drop it as empty
    raise UserError(f"apertium {mode} does not translate: {problem or 'it says nothing'}")


def _pipeline(mode: str, text: str) -> tuple[list[str], str]:
    """The output of one run of the command, by line; none, and why, when it fails or does not finish."""
    limit = TIMEOUT + TIMEOUT_PER_LINE * text.count("\n")
    # -u: unknown words without a mark. A session of its own: it is a script that starts a dozen programs.
    with subprocess.Popen(
        ["apertium", "-u", mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            said, errors = running.communicate(text, limit)
        except BaseException as error:
            os.killpg(running.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return [], f"no end after {limit:.0f} s"
            raise
    if running.returncode:
        return [], f"exit {running.returncode}: {errors.strip()[:300]}"
    return [line.strip() for line in said.split("\n")[:-1]], ""


def _version(package: str) -> str:
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown version"
