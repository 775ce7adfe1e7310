"""Compiling the native kernels on first use: without a compiler, and after a build that was killed."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from late_interaction import native_build
from tests.support.processes import run_well

ROOT = Path(__file__).resolve().parents[2]

# Each environment has a process that has asked nothing before; PyTorch is imported once for all.
_ASK = """
import json, os, sys
from late_interaction import native
for environment in json.loads(sys.argv[1]):
    if not os.fork():
        os.environ.update(environment)
        print(native.unavailable_reason(), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


@pytest.mark.slow
def test_without_a_compiler_there_is_one_line_and_no_crash(tmp_path: Path) -> None:
    cache = {"LATE_INTERACTION_CACHE": str(tmp_path)}
    environments = [{"CXX": "/nonexistent/c++"}, {"PATH": ""}, {"CXX": "false"}]  # which compiles nothing
    given = json.dumps([one | cache for one in environments])
    absent, no_path, useless = run_well("-c", _ASK, given).stdout.splitlines()
    assert "no C++ compiler ('/nonexistent/c++'" in absent
    assert "no C++ compiler ('c++'" in no_path
    assert "compilation failed" in useless
    assert not list(tmp_path.rglob("*.so")) and not list(tmp_path.rglob("build-*"))


@pytest.mark.slow
def test_an_editable_installation_has_compiled_when_it_ends(tmp_path: Path) -> None:
    """The compiler is one that writes empty files."""
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\nwhile [ "$#" -gt 1 ]; do [ "$1" = -o ] && : > "$2"; shift; done\n')
    compiler.chmod(0o755)
    shutil.copytree(ROOT / "late-interaction", tmp_path / "loss", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    variables = {**os.environ, "CXX": str(compiler), native_build.CACHE_VARIABLE: str(tmp_path / "cache")}
    pip = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(tmp_path / "there"), "-e"]
    run_well(*pip, "./loss", variables=variables, cwd=tmp_path)
    assert len(list(tmp_path.glob("cache/native-*/kernels.so"))) == 1


def test_a_lock_left_behind_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the lock file, nor the folder of a killed build, is waited for."""
    monkeypatch.setenv(native_build.CACHE_VARIABLE, str(tmp_path))
    built: list[Path] = []

    def instead_of_compiling(library: Path) -> None:
        time.sleep(0.1)
        built.append(library)
        library.touch()

    monkeypatch.setattr(native_build, "compile_library", instead_of_compiling)
    folder = tmp_path / f"native-{native_build._key(native_build._compiler())}"
    (folder / "build-killed").mkdir(parents=True)
    (folder / "building").touch()
    started = time.monotonic()
    assert native_build.library_path().exists() and native_build.library_path().exists()
    assert time.monotonic() - started < 10 and len(built) == 1 and not (folder / "build-killed").exists()
