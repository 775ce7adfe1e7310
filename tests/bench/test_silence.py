"""Gaps in a recording of a terminal."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.silence import Silence, gaps, main
from filip.errors import UserError


def test_the_longest_gap_comes_first_with_what_stood_there() -> None:
    output = b"one\r\ntwo \x1b[2K\r\nthree\r\n"
    found = gaps(output, "0.5 5\n6.25 9\n0.1 7\n")
    assert [gap.seconds for gap in found] == [6.25, 0.5, 0.1]
    assert (found[0].at, found[0].before) == (0.5, "one")
    assert gaps(output, "O 0.5 5\nH 0.0 START 1\nO 6.25 9\n")[0].before == "one"
    with pytest.raises(UserError, match="not a line of script's"):
        gaps(output, "half a second\n")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("script") is None, reason="no util-linux")
def test_a_recording_of_script_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, timing = tmp_path / "out", tmp_path / "timing"
    command = ["script", "-q", "-f", "--log-out", str(out), "--log-timing", str(timing), "-c"]
    subprocess.run([*command, "echo first; sleep 1.2; echo second"], check=True, stdin=subprocess.DEVNULL)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(Silence(str(out), str(timing), limit=1.0))
    assert ended.value.code == 1 and "s after 0 s: first" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(Silence(str(out), str(timing), limit=60.0))
    assert ended.value.code == 0
