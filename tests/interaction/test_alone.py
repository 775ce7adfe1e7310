"""The engine without the rest: a wheel of its own, and nothing imported but PyTorch and what that brings."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_IMPORT = """
import sys
from importlib.abc import MetaPathFinder

class Nothing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        package = name.split(".")[0]
        if package not in ALLOWED and package not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"{name} is not PyTorch", name=name)

sys.meta_path.insert(0, Nothing())
import torch
from filip.interaction import LateInteractionLoss, late_interaction
for backend in ("tiled", "auto"):
    image, text = torch.randn(3, 4, 16, requires_grad=True), torch.randn(6, 16)
    LateInteractionLoss(backend=backend)(image, text, torch.tensor([1, 2, 3])).loss.backward()
import filip
assert any(name.startswith("filip.interaction") for name in sys.modules)
print(sorted(name for name in sys.modules if name.split(".")[0] == "filip" and "interaction" not in name))
"""


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def modules_of(distribution: str, seen: set[str]) -> set[str]:
    """Importable names of a distribution and of all that it requires."""
    if distribution in seen:
        return set()
    seen.add(distribution)
    try:
        required = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:  # for another platform
        return set()
    owners = importlib.metadata.packages_distributions()
    own = {module for module, names in owners.items() if distribution in map(canonical, names)}
    wanted = [canonical(re.match(r"[\w.-]+", line)[0]) for line in required if "extra ==" not in line]
    return own.union(*(modules_of(other, seen) for other in wanted))


def run_alone(path: Path, tmp_path: Path) -> str:
    """What the script prints with ``path`` as the only place of filip."""
    allowed = modules_of("torch", set()) | {"torch", "torchgen", "functorch", "filip"}
    script = tmp_path / "alone.py"
    script.write_text(f"ALLOWED = {sorted(allowed)}\n{_IMPORT}")
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        env={**os.environ, "PYTHONPATH": str(path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_pytorch_is_imported(tmp_path: Path) -> None:
    assert run_alone(ROOT, tmp_path).strip() == "['filip']"


@pytest.mark.slow
def test_the_wheel_of_its_own_holds_the_engine_and_runs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("filip/interaction", "distributions/interaction"):
        unwanted = shutil.ignore_patterns("__pycache__", "build", "*-info")
        shutil.copytree(ROOT / folder, source / folder, ignore=unwanted)
    shutil.copy(ROOT / "filip" / "__init__.py", source / "filip")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-build-isolation",
        "--no-deps",
        "-q",
        "-w",
        tmp_path,
    ]
    subprocess.run([*command, source / "distributions" / "interaction"], check=True, timeout=300)
    (wheel,) = tmp_path.glob("filip_interaction-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        required = re.findall(r"Requires-Dist: ([\w-]+)", archive.read(metadata).decode())
        archive.extractall(tmp_path / "installed")
    files = {
        file.relative_to(source).as_posix()
        for file in (source / "filip" / "interaction").rglob("*")
        if file.is_file()
    }
    assert {name for name in names if "dist-info" not in name} == files
    assert sorted(required) == ["ninja", "torch"]
    assert run_alone(tmp_path / "installed", tmp_path).strip() == "['filip']"
