"""The engine without the rest: nothing is imported but PyTorch and what that brings."""

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.processes import run_well

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
from late_interaction import LateInteractionLoss, late_interaction
for backend in ("tiled", "auto"):
    image, text = torch.randn(3, 4, 16, requires_grad=True), torch.randn(6, 16)
    LateInteractionLoss(backend=backend)(image, text, torch.tensor([1, 2, 3])).loss.backward()
print("filip" in sys.modules)
"""


def modules_of(distribution: str, owners: Mapping[str, list[str]], seen: set[str]) -> set[str]:
    """Return importable names of a distribution and of all that it requires; ``owners`` has whose each name is."""
    if distribution in seen:
        return set()
    seen.add(distribution)
    try:
        required = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:  # for another platform
        return set()
    own = {module for module, names in owners.items() if distribution in map(canonicalize_name, names)}
    expected = [canonicalize_name(re.match(r"[\w.-]+", line)[0]) for line in required if "extra ==" not in line]
    return own.union(*(modules_of(other, owners, seen) for other in expected))


@pytest.mark.slow
def test_only_pytorch_is_imported(tmp_path: Path) -> None:
    owners = importlib.metadata.packages_distributions()  # reads the files of all that is installed
    allowed = modules_of("torch", owners, set()) | {"torch", "torchgen", "functorch", "late_interaction"}
    script = tmp_path / "alone.py"
    script.write_text(f"ALLOWED = {sorted(allowed)}\n{_IMPORT}")
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "late-interaction")}
    assert run_well("-P", str(script), variables=variables, cwd=tmp_path).stdout.strip() == "False"
