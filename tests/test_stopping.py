"""Ctrl-C in a command, at any moment and with whatever it has started: one sentence and code 130."""

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.eval.miniature import picture, write_model
from tests.support.processes import Process, run_python

ROOT = Path(__file__).parents[1]
COMMANDS = {  # and what each writes last
    "search photos dog index=search": "search/index.json",
    "index build model=filip.safetensors images=photos out=index": "index/index.json",
    "eval model=filip.safetensors data=photos out=results workers=2": "results/photos.json",
    "explore export models=filip.safetensors images=photos out=explore.html": "explore.html",
    "data ingest source=photos out=shards image_rules={min_side:0}": "shards/00000.index",
    "export to=hf model=filip.safetensors out=exported": "exported",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "filip.safetensors", "token_wise")
    (tmp_path / "photos").mkdir()
    for number in range(150):
        picture(number, 48).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text(f"a photo of {number} dogs on the beach\n")
    return tmp_path


WITH_WORKERS = [command for command in COMMANDS if "workers=" in command]
MOMENTS = [(command, moment) for command in COMMANDS for moment in ("imports", "ends")]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "moment"), [*MOMENTS, *((command, "has workers") for command in WITH_WORKERS)])
def test_ctrl_c_is_answered_with_a_sentence(folder: Path, command: str, moment: str) -> None:
    """As a terminal sends it: to the command and to all processes that it has started."""
    log = folder / "log"
    process = Process(["-m", "filip", *command.split()], log=log, cwd=folder)

    def reached() -> bool:
        if moment == "imports":
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            return any(library in maps for library in ("libtorch_cpu", "libarrow"))
        return (
            (folder / COMMANDS[command]).exists() if moment == "ends" else bool(psutil.Process(process.pid).children())
        )

    while process.poll() is None and not reached():
        time.sleep(0.01)
    if process.poll() is None:
        process.signal_group(signal.SIGINT)
    code, printed = process.wait(60), log.read_text()
    assert "Traceback" not in printed and "Error" not in printed, printed
    assert code == (130 if printed.endswith("\nstopped; the same command continues\n") else 0), printed
    assert code == 130 or moment == "ends", printed


@pytest.mark.slow
def test_a_command_that_is_ending_keeps_its_own_code() -> None:
    program = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
    for entry in (
        "import filip.__main__; filip.__main__.script()",
        "import runpy; runpy.run_module('filip', run_name='__main__')",
    ):
        done = run_python("-c", program + entry, "--version")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


STARTS_A_SLEEPER = r"""
import subprocess, sys
def test_it(tmp_path):
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True)
    print(f"\nsleeper {sleeper.pid}", flush=True)
    sleeper.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_that_a_test_has_started_outlives_the_tests(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_it.py").write_text(STARTS_A_SLEEPER)
    log = tmp_path / "log"
    process = Process(["-m", "pytest", "-s", "-n", "0", "-p", "tests.conftest", str(tmp_path)], log=log, cwd=ROOT)
    while process.poll() is None and not (pids := re.findall(r"sleeper (\d+)\n", log.read_text())):
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(60)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(pids[0])).wait(60)
