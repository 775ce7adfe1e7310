"""Ctrl-C in a command, at any moment and with whatever it has started: one sentence and code 130."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.eval.miniature import picture, write_model

COMMANDS = [
    "search photos dog index=search",
    "index build model=filip.safetensors images=photos out=index",
    "eval model=filip.safetensors data=photos out=results workers=2",
    "explore export models=filip.safetensors images=photos out=explore.html",
    "data ingest source=photos out=shards processes=2",
    "export to=hf model=filip.safetensors out=exported",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopping")
    write_model(folder / "filip.safetensors", "token_wise")
    (folder / "photos").mkdir()
    for number in range(150):
        picture(number, 48).save(folder / "photos" / f"{number}.png")
        (folder / "photos" / f"{number}.txt").write_text(f"a photo of {number} dogs on the beach\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 3.0, 5.0])
def test_ctrl_c_is_answered_with_a_sentence(folder: Path, seconds: float) -> None:
    """As a terminal sends it: to the command and to all processes that it has started."""
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [
        subprocess.Popen([sys.executable, "-m", "filip", *command.split()], start_new_session=True, **options)
        for command in COMMANDS
    ]
    time.sleep(seconds)
    running = [process.poll() is None for process in started]
    for process, runs in zip(started, running, strict=True):
        if runs:
            os.killpg(process.pid, signal.SIGINT)
    for command, process, runs in zip(COMMANDS, started, running, strict=True):
        printed = process.communicate(timeout=60)[0]
        assert process.returncode == (130 if runs else 0), f"{command}\n{printed}"
        assert "Traceback" not in printed and "Error" not in printed, f"{command}\n{printed}"
        if runs:
            assert printed.endswith("\nstopped; the same command continues\n"), f"{command}\n{printed}"
