"""The loss is installed by pip and its example runs, whatever compiler, Python and PyTorch there are.

INSTALLS="PYTHON ..." names Pythons with PyTorch and setuptools; without it there is the tests' own. With -s it prints
a table of what computed: the kernels, or PyTorch's tiles.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.system
PYTHONS = os.environ.get("INSTALLS", sys.executable).split()
# What stands in for the compiler, how often it is installed at once, and what computes in the end.
PLACES = {
    "a compiler": ("", 1, "native"),
    "two installs at once": ("", 2, "native"),
    "a compiler without C++20": ('case "$*" in *std=c++2*) exit 1; esac; exec c++ "$@"', 1, "native"),
    "a c++ that always fails": ("echo broken >&2; exit 1", 1, "tiled"),
    "a compiler without C++17": ('case "$*" in *std=c++*) exit 1; esac; exec c++ "$@"', 1, "tiled"),
    "one that fails on a whole file": ('case "$*" in *fsyntax-only*) exit 0; esac; exit 1', 1, "tiled"),
    "no compiler": ("", 1, "tiled"),
    "a cache that cannot be written": ("exit 1", 1, "tiled"),
}
PROBE = """
import sys, torch
from late_interaction import native
print(sys.version.split()[0], torch.__version__, native.unavailable_reason() or "kernels", sep=" | ")
"""


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    table = ["", "| Python | PyTorch | installed with | computes by |", "|---|---|---|---|"]
    yield table
    printer = request.config.pluginmanager.get_plugin("terminalreporter")
    if printer is not None:  # a worker of many has none
        printer.write_line("\n".join(table))


@pytest.mark.parametrize("python", PYTHONS, ids=range(len(PYTHONS)))
@pytest.mark.parametrize("place", PLACES)
def test_it_installs_and_its_example_runs(python: str, place: str, tmp_path: Path, rows: list[str]) -> None:
    script, times, expected = PLACES[place]
    source = shutil.copytree(
        ROOT / "late-interaction", tmp_path / "loss", ignore=shutil.ignore_patterns("build", "*.egg-info", "*.so")
    )
    compiler = tmp_path / "c++"
    if script:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    blocked = tmp_path / "a file"  # no folder can be made in it, not even by root
    blocked.touch()
    cache = blocked if "cache" in place else tmp_path / "cache"
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "CXX")}
    variables |= {"LATE_INTERACTION_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    variables |= {"CXX": str(compiler)} if script or place == "no compiler" else {}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "-q", "--no-deps"]
    folders = [tmp_path / f"there {n}" for n in range(times)]
    commands = [[*pip, "--no-build-isolation", "--target", str(folder), str(source)] for folder in folders]
    for running in [subprocess.Popen(c, env=variables, stderr=subprocess.PIPE, text=True) for c in commands]:
        said = running.communicate()[1]
        assert running.returncode == 0, said
    if "cache" in place:
        variables.pop("CXX")  # the first use would compile
    for folder in folders:
        variables["PYTHONPATH"] = str(folder)
        probe, example = (
            subprocess.run([python, *program], env=variables, cwd=tmp_path, capture_output=True, text=True)
            for program in (("-c", PROBE), ("-P", str(source / "example.py")))
        )
        assert probe.returncode == example.returncode == 0, probe.stderr + example.stderr
        versions, why = probe.stdout.strip().rsplit(" | ", 1)
        rows.append(f"| {versions} | {place} | {why} |")
        assert (why == "kernels") == (expected == "native"), why
        assert ("tiled PyTorch backend" in example.stderr) == (expected == "tiled"), example.stderr
