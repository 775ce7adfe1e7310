"""Apertium: rule-based translation, very fast (hundreds of round trips a second), where Debian's packages are.

apt-get install apertium apertium-eng-spa        # pivot es; apertium-eng-cat: pivot ca
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

from filip.errors import UserError

LANGUAGES = {"es": "spa", "ca": "cat"}  # ISO 639-1 → what Apertium's modes call it
TIMEOUT = 600  # seconds per block


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
    # -u: unknown words without a mark
    done = subprocess.run(
        ["apertium", "-u", mode],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    translated = [line.strip() for line in done.stdout.split("\n")[:-1]]
    if done.returncode or len(translated) != len(lines):
        raise RuntimeError(
            f"apertium {mode} gave {len(translated)} lines for {len(lines)} (exit {done.returncode}): "
            f"{done.stderr[:300]}"
        )
    return [line if stop else line.removesuffix(".") for line, stop in zip(translated, stopped, strict=True)]


def _version(package: str) -> str:
    query = ["dpkg-query", "-W", "-f", "${Version}", package]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown version"
