"""For all tests."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from multiprocessing.util import Finalize
from pathlib import Path

import pytest

# What is compiled or fetched once stays in the checkout, not in the home folder. Other conftests import what compiles.
CACHE = Path(__file__).resolve().parents[1] / ".cache"
os.environ.setdefault("XDG_CACHE_HOME", str(CACHE))
os.environ.setdefault("MPLCONFIGDIR", str(CACHE / "matplotlib"))

MARK = "FILIP_TESTS"  # in the environment of all that tests start


def pytest_configure(config: pytest.Config) -> None:
    """Listen to Ctrl-C, and let compiled modules be written.

    A shell ignores Ctrl-C in what it starts in the background, and a test's processes inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As in the Makefile, for tests that are run without it: what processes import is to be compiled once.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # Threads of processes that tests start should not spin while they wait: the other tests need the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # torch's compiler would start processes that import PyTorch, for kernels that are few and small.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # What tests and the libraries under them forget in TMPDIR goes with it; pytest keeps its own elsewhere.
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        folder = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="filip-")
        # after the last of multiprocessing's own finalizers, which look for their files in it
        Finalize(None, shutil.rmtree, (folder, True), exitpriority=-200)
    # However these tests end, nothing that they have started goes on.
    os.environ.pop(MARK, None)
    command = [sys.executable, str(Path(__file__).parent / "support/guardian.py"), f"{MARK}={os.getpid()}"]
    guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    config.add_cleanup(guardian.communicate)
    os.environ[MARK] = str(os.getpid())


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what all tests have imported: looking at it takes a tenth of a second."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let no worker of `make test` be left alone with a long file: files whose tests may take longest come first, then
    the other slow ones; without workers keep pytest's order."""
    if not hasattr(config, "workerinput"):
        return
    most: dict[Path, tuple[float, bool]] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        marked = any(item.get_closest_marker(name) for name in ("slow", "system"))
        takes = (timeout.args[0] if timeout else 0, marked)
        most[item.path] = max(most.get(item.path, takes), takes)
    items.sort(key=lambda item: most[item.path], reverse=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how long the tests of each mark took, added up over the workers."""
    seconds: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            seconds[next((mark for mark in ("system", "slow") if mark in report.keywords), "no mark")] += (
                report.duration
            )
    for mark, duration in seconds.items():
        terminalreporter.write_line(f"{mark}: {duration:.0f} s")
