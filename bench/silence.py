"""Find how long a recording of a terminal is silent: the longest gaps between two outputs, and what stood there before.

    script -q -f --log-out demo.out --log-timing demo.timing -c 'make demo'                  # a terminal
    script -q -f --log-out demo.out --log-timing demo.timing -c 'make demo 2>&1 | cat'       # no terminal
    python -m bench.silence out=demo.out timing=demo.timing limit=5

Exit code 1 if a gap is longer than ``limit``.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from filip.command import MISSING, option, run_command
from filip.errors import UserError

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@dataclass
class Silence:
    out: str = option(MISSING, "the output, script's --log-out")
    timing: str = option(MISSING, "its times, script's --log-timing")
    limit: float = option(5.0, "seconds; a longer gap is a failure")
    longest: int = option(5, "how many gaps to print")


@dataclass(frozen=True)
class Gap:
    """A gap of ``seconds`` without output, ``at`` seconds after the start; before: the last line until then."""

    seconds: float
    at: float
    before: str


def gaps(output: bytes, timing: str) -> list[Gap]:
    """Return all gaps of a recording, longest first. timing: lines of seconds since the output before, and bytes."""
    found, at, position = [], 0.0, 0
    for line in timing.splitlines():
        fields = line.split()
        if fields and len(fields[0]) == 1 and fields[0].isalpha():  # the newer format: kind, seconds, bytes
            if fields[0] != "O":
                continue
            fields = fields[1:]
        if len(fields) != 2:
            raise UserError(f"{line!r} is not a line of script's --log-timing")
        seconds, size = float(fields[0]), int(fields[1])
        found.append(Gap(seconds, at, _last_line(output[:position])))
        at += seconds
        position += size
    return sorted(found, key=lambda gap: -gap.seconds)


def _last_line(output: bytes) -> str:
    text = _CONTROL.sub("", output[-2000:].decode(errors="replace"))
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def main(config: Silence) -> None:
    """Print the longest gaps of a recording; exit with 1 if one is longer than the limit."""
    output = Path(config.out).read_bytes()
    if output.startswith(b"Script started"):
        output = output[output.index(b"\n") + 1 :]
    found = gaps(output, Path(config.timing).read_text())
    if not found:
        raise UserError(f"{config.timing} is empty: nothing was recorded")
    print(f"{sum(gap.seconds for gap in found):.0f} s recorded; the longest silences:")
    for gap in found[: config.longest]:
        print(f"  {gap.seconds:6.1f} s after {gap.at:.0f} s: {gap.before[:100]}")
    sys.exit(found[0].seconds > config.limit)


if __name__ == "__main__":
    run_command(main, Silence)
