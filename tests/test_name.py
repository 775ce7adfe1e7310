"""PyPI's `filip` is another project: no page and no message may tell people to install it."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
# Where its own name may stand: what declares it, what explains it, what tests it.
NAMED = {"pyproject.toml", "docs/installation.md", "CHANGELOG.md", "tests/test_wheel.py", "tests/test_name.py"}
TEXTS = {
    name: (ROOT / name).read_text()
    for name in LISTED
    if Path(name).suffix in (".md", ".py", ".yaml", ".toml", ".smk", ".txt", ".html", ".js", "")
    and (ROOT / name).is_file()
    and name != "tests/test_name.py"
}
INSTALLS = [
    (name, line)
    for name, text in TEXTS.items()
    for line in re.findall(r"(?:pip|uv|pipx) (?:install|add) ([^\n`]*)", text)
    if name != "CHANGELOG.md"
]


def test_the_distribution_has_a_name_of_our_own() -> None:
    assert PROJECT["name"] != "filip"
    assert any(name == "docs/installation.md" and "explore" in line for name, line in INSTALLS)


@pytest.mark.parametrize(("name", "line"), INSTALLS)
def test_no_line_installs_the_other_project(name: str, line: str) -> None:
    words = [word.strip("'\"(),;.") for word in line.split()]
    assert not any(re.fullmatch(r"filip(\[.*\]?)?([<=>~@].*)?", word) for word in words), f"{name}: {line}"


@pytest.mark.parametrize(("name", "line"), [(n, li) for n, li in INSTALLS if re.search(r"\.\[\w", li)])
def test_what_is_installed_from_a_checkout_is_an_extra_that_exists(name: str, line: str) -> None:
    if "{" in line:
        return  # a message, whose extra the code fills in
    extras = re.findall(r"\.\[([\w,]+)\]", line)
    assert {extra for group in extras for extra in group.split(",")} <= set(PROJECT["optional-dependencies"]), name


def test_the_name_stands_in_one_place() -> None:
    assert {name for name, text in TEXTS.items() if PROJECT["name"] in text} <= NAMED
