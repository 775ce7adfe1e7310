"""A module that the warm server runs behaves as if python -m had run it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workflow.stages import warm_seconds
from workflow.study import ROOT
from workflow.warm import SERVER

MODULE = """
import os, signal, sys, time
print(sys.argv[1:], os.getcwd(), os.environ["OWN"], __name__, flush=True)
print("to stderr", file=sys.stderr, flush=True)
if "fail" in sys.argv:
    sys.exit(7)
if "raise" in sys.argv:
    raise ValueError("this one")
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(85))
    open("pid", "w").write(str(os.getpid()))
    time.sleep(60)
"""


def wait_until(there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start a server that has imported nothing; return a folder with its socket and a module to run."""
    folder = tmp_path_factory.mktemp("warm")
    (folder / "told.py").write_text(MODULE)
    code = "import sys; from workflow.warm_server import serve; serve(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    server = subprocess.Popen([sys.executable, "-c", code, str(folder / "socket")], env=environment)
    wait_until((folder / "socket").exists)
    yield folder
    server.send_signal(signal.SIGTERM)
    assert server.wait(10) == 0


def start(place: Path, *arguments: str, served: bool = True) -> subprocess.Popen[str]:
    environment = {**os.environ, "OWN": "value", "PYTHONPATH": f"{ROOT}:{place}"}
    if served:
        environment[SERVER] = str(place / "socket")
    return subprocess.Popen(
        [sys.executable, "-m", "workflow.warm", "told", *arguments],
        cwd=place,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_arguments_folder_environment_files_and_exit_code_are_the_caller_s(place: Path) -> None:
    with_server, without = (start(place, "a b", "fail", served=served) for served in (True, False))
    output, errors = with_server.communicate(timeout=20)
    expected, plain = without.communicate(timeout=20)
    assert output == expected == f"['a b', 'fail'] {place} value __main__\n"
    assert with_server.returncode == without.returncode == 7
    assert errors.startswith(plain) and re.search(r"\nprocessor time: [\d.]+ s\n$", errors)
    (place / "log").write_text("loss 3\nprocessor time: 12.5 s\n")
    assert [warm_seconds(file) for file in (place / "log", place / "told.py", None)] == [12.5, 0, 0]


def test_an_exception_is_shown_and_fails(place: Path) -> None:
    called = start(place, "raise")
    assert "ValueError: this one" in called.communicate(timeout=20)[1] and called.returncode == 1


def test_a_signal_reaches_the_module_whose_exit_code_comes_back(place: Path) -> None:
    (place / "pid").unlink(missing_ok=True)
    called = start(place, "wait")
    wait_until(lambda: (place / "pid").exists() and (place / "pid").read_text())
    called.send_signal(signal.SIGTERM)
    assert called.wait(10) == 85


def test_the_module_ends_with_a_caller_that_is_killed(place: Path) -> None:
    (place / "pid").unlink(missing_ok=True)
    called = start(place, "wait")
    wait_until(lambda: (place / "pid").exists() and (place / "pid").read_text())
    number = int((place / "pid").read_text())
    called.kill()
    called.wait(10)
    wait_until(lambda: not Path(f"/proc/{number}").exists())
