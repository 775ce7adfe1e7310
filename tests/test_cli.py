"""``filip``: every command is listed and answers to --help; mistakes are answered with what to type instead."""

import subprocess
import sys
from pathlib import Path

import pytest

import filip
from filip.__main__ import GROUPS, choose, commands, overview, run
from tests.support.processes import run_python, run_well

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = "from filip.__main__ import main; main()"  # as the entry point has it
NAMES = [" ".join(command.words) for command in commands()]


def test_every_module_that_runs_a_command_is_listed_in_its_group_with_one_line() -> None:
    files = [file for file in (ROOT / "filip").rglob("*.py") if "run_command(" in file.read_text()]
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__") for file in files} - {
        "filip.cli.command"
    }
    assert {command.module for command in commands()} == modules
    assert {"train", "train plan", "data download", "eval picture", "export"} <= set(NAMES)
    text = overview(commands())
    for command in commands():
        line = next(line for line in text.splitlines() if line.split()[: len(command.words)] == list(command.words))
        assert command.about and command.about in line and len(line) <= 150
        assert command.group in GROUPS
        assert command.group or len(command.words) == 1, "a group without a title"


def test_the_list_needs_no_third_party_package_and_a_group_lists_its_own() -> None:
    program = "from filip.__main__ import run; run([]); run(['report'])"
    result = run_python("-S", "-c", program, variables={"PYTHONPATH": str(ROOT)})
    everything, group = result.stdout.split("filip COMMAND key=value")[1:]
    assert "data download" in everything
    assert "report tables" in group and "data download" not in group


@pytest.mark.parametrize("typed", ["data", "report --help", "report -h", "help data"])
def test_a_group_lists_its_commands_however_it_is_asked(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(typed.split())
    printed = capsys.readouterr().out
    words = [word for word in typed.split() if word not in ("help", "--help", "-h")]
    of_group = [name for name in NAMES if name.split()[: len(words)] == words]
    assert len(of_group) > 1 and all(f"  {name} " in printed for name in of_group)
    assert "eval table" not in printed


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "train"])  # which ends its process
def test_help_says_what_a_command_does(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)
    run([*name.split(), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    about = next(command.about for command in commands() if " ".join(command.words) == name)
    assert about.split(".")[0][:40] in printed and "key=value" in printed


def test_a_plain_argument_of_a_command_is_no_mistyped_command() -> None:
    for typed, words in (
        (["eval", "table", "results"], 2),
        (["search", "photos", "a dog"], 1),
        (["report", "show", "results"], 2),
    ):
        command, rest = choose(typed, commands())
        assert (command.words, rest) == (tuple(typed[:words]), typed[words:])
    assert choose(["data", "text-rules", "list=l"], commands())[0].module == "filip.data.text_rules"


@pytest.mark.slow
def test_worker_processes_start_under_the_command(tmp_path: Path) -> None:
    """Spawned workers import the module that the command runs, not the entry point."""
    (tmp_path / "pairs.csv").write_text(
        "url,caption\n" + "".join(f"http://x/{i}.jpg,a dog number {i} runs on the beach\n" for i in range(40))
    )
    places = (f"list={tmp_path}/list.parquet", f"out={tmp_path}/kept.parquet", f"funnel={tmp_path}/funnel.json")
    for arguments in (
        ("data", "prepare", f"source={tmp_path}/pairs.csv", f"out={tmp_path}/list.parquet"),
        ("data", "text_rules", "source=cc3m", *places, "processes=2"),
    ):
        run_well("-c", SCRIPT, *arguments)
    assert (tmp_path / "kept.parquet").is_file()


def test_the_version_is_said_and_the_import_is_light() -> None:
    assert run_python("-c", SCRIPT, "--version").stdout == f"filip {filip.__version__}\n"
    program = """
import os, sys
before = dict(os.environ)
import filip
print(sorted(name for name in sys.modules if name.partition(".")[0] not in sys.stdlib_module_names))
assert dict(os.environ) == before
"""
    result = run_python("-S", "-c", program, variables={"PYTHONPATH": str(ROOT)})
    assert result.stdout == "['__main__', 'filip']\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["train", "plan", "--help"]])
def test_a_reader_that_leaves_is_no_error(arguments: list[str]) -> None:
    """As with ``filip … | head -1``: no trace, whatever is still to be printed."""
    program = [sys.executable, "-c", "import sys, filip.__main__ as m; sys.stdin.read(); m.main()", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
