"""PyPI's `filip` is another project: no page and no message may tell people to install it."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
# Where its own name may be: what declares it, what explains it, what tests it.
NAMED = {"pyproject.toml", "docs/installation.md", "CHANGELOG.md", "tests/test_wheel.py", "tests/test_name.py"}
TEXTS = {
    name: (ROOT / name).read_text()
    for name in LISTED
    if Path(name).suffix in (".md", ".py", ".yaml", ".toml", ".smk", ".txt", ".html", ".js", "")
    and (ROOT / name).is_file()
    and name != "tests/test_name.py"
}
INSTALL = re.compile(r"(?:pip|uv|pipx) (?:install|add) ([^\n`]*)")
OTHER = re.compile(r"filip(\[.*\]?)?([<=>~@].*)?")


def test_the_distribution_has_a_name_of_our_own_that_stands_in_one_place() -> None:
    assert PROJECT["name"] != "filip"
    assert {name for name, text in TEXTS.items() if PROJECT["name"] in text} <= NAMED


def test_no_line_installs_the_other_project_or_an_extra_that_does_not_exist() -> None:
    installs = [(name, line) for name in TEXTS.keys() - {"CHANGELOG.md"} for line in INSTALL.findall(TEXTS[name])]
    assert any(name == "docs/installation.md" and "eval" in line for name, line in installs)
    for name, line in installs:
        words = [word.strip("'\"(),;.") for word in line.split()]
        assert not any(OTHER.fullmatch(word) for word in words), f"{name}: {line}"
        extras = {extra for group in re.findall(r"\.\[([\w,]+)\]", line) for extra in group.split(",")}
        assert extras <= set(PROJECT["optional-dependencies"]), f"{name}: {line}"
