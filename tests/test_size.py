"""The size of the house and of the command line: neither grows without a decision (tests/budget.yaml)."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bench.size import BUDGET, measure
from filip.__main__ import commands, run

ROOT = Path(__file__).resolve().parent.parent
LIMITS = yaml.safe_load(BUDGET.read_text(encoding="utf-8"))
NAMES = [" ".join(command.words) for command in commands()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="counts the files that git knows")
def test_no_package_is_larger_than_its_budget() -> None:
    lines, _ = measure()
    assert {name: count for name, count in lines.items() if count > LIMITS["lines"].get(name, 0)} == {}


def test_the_page_shows_every_package_within_its_budget() -> None:
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ([\d,]+) \| \d+ \| ([\d,]+) \|$", page, re.MULTILINE)
    shown = {name: (int(lines.replace(",", "")), int(budget.replace(",", ""))) for name, lines, budget in rows}
    assert {name: budget for name, (_, budget) in shown.items()} == LIMITS["lines"]
    assert all(lines <= budget for lines, budget in shown.values())


def test_no_command_is_new() -> None:
    assert sorted(LIMITS["options"]) == sorted(NAMES)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_help_says_what_a_command_does_and_shows_no_option_that_is_new(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    if name == "train":  # ends its process
        command = [sys.executable, "-m", "filip", "train", "--help"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    else:
        run([*name.split(), "--help"])
        printed = capsys.readouterr().out
    about = next(command.about for command in commands() if " ".join(command.words) == name)
    assert about.split(".")[0][:40] in " ".join(printed.split()) and "key=value" in printed
    assert re.findall(r"^  ([\w.]+)=", printed, re.MULTILINE) == LIMITS["options"][name].split()
