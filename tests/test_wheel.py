"""The wheel alone, in a separate environment and from an empty folder: it lists, loads, evaluates and plans."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import filip
from filip.eval.cards import load_card
from tests.eval.miniature import picture, write_model, write_webdataset

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.system


def run(*command: str | Path, cwd: Path) -> str:
    """Return the standard output of a command that must succeed, without the checkout on Python's path."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the files in the repository, with the setuptools at hand."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    sources = folder / "source", folder / "source/late-interaction"
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", folder, *sources, cwd=folder)
    return next(folder.glob("filip_pretraining-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a fresh environment: the wheel is installed, its dependencies are those of the tests' environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth file: packages there can be imported, but its own .pth files (an editable FILIP) do not count.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    wheels = wheel.parent.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", *wheels, cwd=folder)
    return python


def test_the_wheel_carries_every_card_and_setting_and_nothing_of_the_repository_beside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("data", "eval", "ds_configs"):
        expected = {f"filip/resources/{folder}/{file.name}" for file in (ROOT / folder).glob("*.[yj]*")}
        assert expected and expected <= inside
    package = [file for file in (ROOT / "filip").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert {str(file.relative_to(ROOT)) for file in package} <= inside
    assert {name.partition("/")[0] for name in inside} == {
        "filip",
        "filip_demo",
        "filip_research",
        f"filip_pretraining-{filip.__version__}.dist-info",
    }
    assert any(name.endswith("/LICENSE") for name in inside)


def test_the_wheel_works_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    write_model(tmp_path / "tiny.safetensors")
    picture(1).save(tmp_path / "image.png")
    card = load_card("cifar10", "webdataset")
    write_webdataset(tmp_path / "sets" / card.path, list(card.classes or ()), [number % 10 for number in range(20)])

    where = run(python, "-c", "import filip; print(filip.__file__, filip.__version__)", cwd=empty)
    assert Path(where.split()[0]).is_relative_to(python.parents[1]) and where.split()[1] == filip.__version__
    assert "eval picture" in run(python.parent / "filip", "--help", cwd=empty)

    program = f"""
from filip import load
model = load({str(tmp_path / "tiny.safetensors")!r})
found = model.similarity([{str(tmp_path / "image.png")!r}], ["a cat", "a dog", "a bird"])
print(*found.i2t.shape, *found.t2i.shape, len(model.align({str(tmp_path / "image.png")!r}, "a cat").tokens))
"""
    assert run(python, "-c", program, cwd=empty) == "1 3 1 3 4\n"

    run(
        *(python.parent / "filip", "eval", "protocols=[zero_shot]", f"model={tmp_path}/tiny.safetensors"),
        *(f"root={tmp_path}/sets", "data=[cifar10@webdataset]", f"out={tmp_path}/out"),
        cwd=empty,
    )
    assert json.loads((tmp_path / "out/zero_shot/cifar10.json").read_text())["benchmarks"]["cifar10"]["n"] == 20

    plan = run(python, "-m", "filip.train.plan", "experiment=demo_from_scratch", "gpus=2", cwd=empty)
    assert "parameters" in plan and "reduction buffer" in plan
    find = "from filip.train.engine import settings_path; from filip.train.config import TrainConfig; "
    settings = run(
        python, "-c", f"{find}print(settings_path(TrainConfig(zero_stage=3, precision='fp16')).is_file())", cwd=empty
    )
    assert settings.splitlines()[-1] == "True"
    assert list(empty.iterdir()) == []
