"""The Makefile's targets that a newcomer types first, and the installation: what they refuse, in a sentence."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.processes import run_python
from workflow import install

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Make the files that the installation reads, without a .venv."""
    folder = tmp_path / "a checkout"
    (folder / "workflow/envs").mkdir(parents=True)
    (folder / "late-interaction").mkdir()
    read = ("Makefile", "pyproject.toml", "setup.py", "late-interaction/pyproject.toml")
    for name in (*read, "workflow/install.py", "workflow/envs/lock.txt", "workflow/envs/v100.txt"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "workflow/config", folder / "workflow/config")
    return folder


def venv(checkout: Path, version: str = HERE) -> Path:
    """Make a .venv that claims to hold a Python, with one that runs."""
    folder = checkout / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\nversion = {version}.1\n")
    (folder / "bin/python").symlink_to(sys.executable)
    return folder


def refused(checkout: Path, *arguments: str) -> str:
    """Return the one sentence by which `workflow/install.py` refuses."""
    done = run_python("workflow/install.py", *arguments, cwd=checkout)
    assert done.returncode == 1 and done.stdout == ""
    (sentence,) = done.stderr.splitlines()
    return sentence


def make(checkout: Path, *arguments: str, stdin: str = "") -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=checkout, env=environment, input=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_venv_of_an_unsupported_python_is_not_reused(checkout: Path) -> None:
    venv(checkout, "3.10")
    assert refused(checkout, "demo") == (
        "error: .venv holds Python 3.10; FILIP runs on 3.11 to 3.14: remove it (rm -r .venv) and run the same again"
    )


def test_a_named_python_has_to_be_that_of_the_venv(checkout: Path) -> None:
    other = "3.12" if HERE == "3.11" else "3.11"
    venv(checkout, other)
    assert f".venv holds Python {other}, and PYTHON= names {HERE}" in refused(checkout, "demo", "--chosen")


def test_a_named_python_that_is_too_old_is_refused_before_anything_is_made(checkout: Path) -> None:
    text = (checkout / "pyproject.toml").read_text()
    later = text.replace('requires-python = ">=3.11,<3.15"', 'requires-python = ">=3.91,<3.95"')
    assert later != text
    (checkout / "pyproject.toml").write_text(later)
    assert f"is Python {HERE}; FILIP runs on 3.91 to 3.94: name another" in refused(checkout, "demo", "--chosen")
    assert not (checkout / ".venv").exists()


def test_a_venv_whose_python_is_gone_is_named(checkout: Path) -> None:
    folder = venv(checkout)
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to("/nowhere/python3")
    assert ".venv has no Python that runs: remove it (rm -r .venv)" in refused(checkout, "demo")


def test_nothing_is_installed_again_until_a_version_changes(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(install, "ROOT", checkout)
    monkeypatch.setattr(install, "VENV", venv(checkout))
    monkeypatch.setattr(install, "LOCKS", checkout / "workflow/envs")
    monkeypatch.setattr(install, "install", lambda tier, new, gpu: asked.append(tier))
    monkeypatch.setattr(sys, "argv", ["install.py", "demo"])
    (checkout / ".venv/.installed").write_text(install.digest("demo"))
    install.main()
    assert asked == []
    with (checkout / "workflow/envs/lock.txt").open("a") as lock:
        lock.write("one-more==1.0\n")
    install.main()
    assert asked == ["demo"]


@pytest.mark.slow
def test_pips_settings_are_uvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror in pip.conf, wheels on the disk by a variable; what is set for uv itself stays."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://mirror.example/simple\nextra-index-url = https://a.example/x\n  https://b.example/y\n"
        "[install]\nconstraint = /etc/constraints.txt\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels /more")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "7")
    monkeypatch.setenv("PIP_TIMEOUT", "9")
    settings = install.pip_settings(Path(sys.executable))
    assert settings["constraint"] == ["/etc/constraints.txt"]
    result = install.like_pip(settings)
    assert result["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert result["UV_INDEX"].split() == ["https://a.example/x", "https://b.example/y"]
    assert result["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert result["UV_FIND_LINKS"] == "/wheels,/more"
    assert "UV_HTTP_TIMEOUT" not in result


@pytest.mark.parametrize("gpu", [None, "v100"])
def test_the_lock_has_a_version_that_suits_every_requirement(gpu: str | None) -> None:
    """Otherwise `make lock` was forgotten after a change of pyproject.toml."""
    pins: dict[str, list[Requirement]] = {}
    for line in map(str.strip, install.lock_of(gpu).read_text().splitlines()):
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), []).append(pin)
    for line in importlib.metadata.requires(PROJECT["name"]):
        expected = Requirement(line)
        if canonicalize_name(expected.name) == PROJECT["name"] or expected.url or not applies(expected.marker):
            continue
        results = [pin for pin in pins.get(canonicalize_name(expected.name), []) if applies(pin.marker)]
        assert len(results) == 1, f"{line}: {results}"
        (version,) = [one.version for one in results[0].specifier]
        assert expected.specifier.contains(version, prereleases=True), f"{line}: the lock has {version}"


@pytest.mark.system
def test_a_v100_gets_a_pytorch_with_kernels_for_it(tmp_path: Path) -> None:
    """2.10.0 of PyPI is the newest with sm_70: installed, asked without a card, and the trainer imported with it."""
    free = shutil.disk_usage(tmp_path).free / 2**30
    if free < 12:  # a full disk would end the other worker's tests
        pytest.skip(f"PyTorch with CUDA takes 9 GiB for a minute, {tmp_path} has {free:.0f}: --basetemp=… is a place")
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    command = [str(Path(sys.executable).with_name("uv")), "pip", "install", "-q", "--python", str(python)]
    command += ["--constraint", str(install.lock_of("v100")), "-e", "./late-interaction", "-e", ".[train]"]
    # A cache on the disk of the venv: uv links its files, and both go with the test.
    environment = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200)
    if done.returncode and "Failed to fetch" in done.stderr:
        pytest.skip(f"the package index does not answer: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    asked = "import torch, filip.train.loop; print(torch.__version__, torch._C._cuda_getArchFlags())"
    done = subprocess.run([python, "-c", asked], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    version, *kernels = done.stdout.split()
    assert version.startswith("2.10.0") and "sm_70" in kernels, done.stdout + done.stderr


def test_a_venv_keeps_the_gpu_that_it_was_made_for(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []
    monkeypatch.setattr(install, "VENV", venv(checkout))
    monkeypatch.setattr(install, "install", lambda tier, new, gpu: made.append(gpu))
    (checkout / ".venv/.installed").write_text(install.digest("demo"))
    monkeypatch.setattr(sys, "argv", ["install.py", "demo", "--gpu", "v100"])
    install.main()
    (checkout / ".venv/.gpu").write_text("v100")
    monkeypatch.setattr(sys, "argv", ["install.py", "demo"])
    install.main()
    assert made == ["v100", "v100"], "the newest PyTorch has no kernels for it"
    (checkout / ".venv/.installed").write_text(install.digest("demo", "v100"))
    install.main()
    assert len(made) == 2


def applies(marker: Marker | None) -> bool:
    return marker is None or marker.evaluate()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["run", "STUDY=typo"],
            "error: there is no study 'typo': no file workflow/config/typo.yaml. Known: ablation base",
        ),
        (["dry-run", "STUDY=typo"], "error: there is no study 'typo'"),
        (["demo", "STUDY=base"], "error: make demo runs the demo; the study base: make run STUDY=base"),
        (["setup", "PYTHON=/nowhere/python3"], "error: PYTHON=/nowhere/python3 does not run, or is older than 3.7"),
        (["run", "CPU=avx512"], "CPU=avx512: only CPU=avx2 is known"),
        (["demo", "CPU="], "only CPU=avx2 is known"),
    ],
)
def test_a_mistyped_make_is_refused_in_a_sentence(checkout: Path, arguments: list[str], sentence: str) -> None:
    code, printed = make(checkout, *arguments)
    assert code != 0 and sentence in printed and "Traceback" not in printed
    assert not (checkout / ".venv").exists()


@pytest.mark.slow
def test_clean_keeps_trained_models_and_clean_results_asks(checkout: Path) -> None:
    model = checkout / "results/demo/models/filip.safetensors"
    model.parent.mkdir(parents=True)
    model.write_text("weights")
    (checkout / ".mypy_cache").mkdir()
    assert make(checkout, "clean")[0] == 0
    assert model.is_file() and not (checkout / ".mypy_cache").exists()
    for answer in ("", "no\n"):
        code, printed = make(checkout, "clean-results", stdin=answer)
        assert code != 0 and "nothing was removed" in printed and model.is_file()
    assert make(checkout, "clean-results", stdin="yes\n")[0] == 0
    assert not model.exists()
    model.parent.mkdir(parents=True)
    assert make(checkout, "clean-results", "STUDY=demo", "CONFIRM=yes")[0] == 0
    assert not (checkout / "results/demo").exists()
