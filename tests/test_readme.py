"""The commands and the Python of the README and of the readers' pages run as printed.

A reader's page is where a reader begins: to use, to train, to compare, or to extend. The code of
``docs/extending.md`` is run by test_docs.py.

Every fenced block has a language, which decides its fate. ``sh``: each command must match one line of
``SHELL``, which runs it whole where that is cheap, and otherwise checks its arguments as the command itself would
(a command that matches none fails here, so that none is added untested). ``yaml`` and ``python`` blocks are used by
the tests named after them. ``text`` is not run.
"""

import contextlib
import dataclasses
import gzip
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from packaging.requirements import Requirement

from filip.__main__ import choose
from filip.__main__ import commands as filip_commands
from filip.__main__ import run as run_filip
from filip.cli.command import compose_config
from filip.data.cards import load_source
from filip.export.hf_folder import clip_tokenizer
from filip.models import build_model, load_preset, save_model
from filip.train.config import TrainConfig
from tests.eval.miniature import picture
from tests.support.clips import hf_folder
from tests.support.snakemake_runs import run_snakemake

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
READERS = [f"docs/{name}.md" for name in ("quickstart", "own_data", "scale", "extending")]
RUN = ["README.md", *(page for page in READERS if page != "docs/extending.md")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    """Return the blocks of the README and the readers' pages in one language."""
    pages = ((ROOT / page).read_text() for page in RUN)
    return [text for page in pages for result, text in BLOCK.findall(page) if result == language]


def commands(block: str) -> Iterator[str]:
    """Yield the commands of an ``sh`` block: continued lines joined, comments and empty lines left out."""
    for line in block.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield shlex.join(words).replace("'>'", ">")  # a redirection is not a word to be quoted


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a checkout whose owner has followed the pages: a list of pairs, a card for it, images, a model."""
    folder = tmp_path_factory.mktemp("readme") / "filip"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in ("data", "eval", "workflow"):
            shutil.copytree(entry, folder / entry.name)
        elif not entry.name.startswith(".") and entry.name not in ("results", "runs"):
            (folder / entry.name).symlink_to(entry)
    captions = ["a dog runs on the beach", "two cats on a red sofa", "an old bridge over the river", "IMG_2041.JPG"]
    rows = "".join(f"http://example.org/{n}.jpg,{text}\n" for n, text in enumerate(captions))
    with gzip.open(folder / "pairs.csv.gz", "wt") as file:
        file.write("link,alt\n" + rows)
    torch.manual_seed(0)
    for name in ("filip.safetensors", "results/mine/models/filip.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_model(folder / name, build_model(load_preset("tiny")))
    photos = ("cat.jpg", "dog.jpg", "photos/1.jpg", "photos/2.jpg", "pictures/cat/1.jpg", "pictures/dog/1.jpg")
    for number, name in enumerate(photos):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
        if name.startswith("photos"):
            path.with_suffix(".txt").write_text("a cat")
    for block in blocks("yaml"):
        path = block.splitlines()[0].removeprefix("# ")
        (folder / path).write_text(block)
    return folder


def run(command: list[str], cwd: Path) -> str:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def whole(command: str, workspace: Path) -> None:
    """Run it as it stands; ``filip`` is this interpreter's, whether its script is installed or not."""
    run(["bash", "-c", re.sub(r"^filip\b", f"{shlex.quote(sys.executable)} -m filip", command)], workspace)


def in_process(command: str, workspace: Path) -> None:
    """Run it as ``filip`` does, in this process, which has imported much of it already."""
    with contextlib.chdir(workspace):
        run_filip(shlex.split(command)[1:])


def a_new_study(command: str, workspace: Path) -> None:
    """Run it under another name: a card of this one is on the page of training, too."""
    there = len(list((workspace / "eval").glob("another*")))
    in_process(command.replace(" mine ", f" another{there} "), workspace)


def left_out(command: str, workspace: Path) -> None:
    """Leave out what changes the shell alone, and what tests/test_speedrun.py runs with fewer steps."""


def made(command: str, workspace: Path) -> None:
    """Check that the Makefile has the target and the study exists."""
    words = shlex.split(command)
    target = words[words.index("make") + 1]
    assert re.search(rf"^{target}:", (workspace / "Makefile").read_text(), re.MULTILINE)
    for study in {*re.findall(r"STUDY=(\w+)", command)} - {"mine"}:  # that the reader writes
        assert (workspace / f"workflow/config/{study}.yaml").is_file()


def arguments_checked(command: str, workspace: Path) -> None:
    """Compose the configuration from the arguments: unknown options and mistyped values are refused."""
    words = shlex.split(command)
    if words[0] == "filip":
        chosen, overrides = choose(words[1:], filip_commands())
        module = chosen.module
    else:
        module = words[words.index("--module") + 1]
        overrides = words[words.index(module) + 1 :]
    if module == "filip.train":
        compose_config(TrainConfig, overrides, "train").check()
        return
    main = importlib.import_module(module).main
    (schema,) = [t for t in typing.get_type_hints(main).values() if dataclasses.is_dataclass(t)]
    compose_config(schema, overrides)


def installable(command: str, workspace: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in shlex.split(command)[2:]:
        of_checkout = word == "." or re.fullmatch(r"\.\[(\w+)\]", word)
        assert of_checkout or (workspace / word / "pyproject.toml").is_file() or Requirement(word)
        assert word == "." or not of_checkout or word[2:-1] in extras


def with_a_local_clip(command: str, workspace: Path) -> None:
    """Run it on photographs of the workspace with a folder in the hub's format, of random weights."""
    hf_folder(workspace / "clip")
    clip_tokenizer(build_model(load_preset("tiny"))).save_pretrained(workspace / "clip")
    command = command.replace("openai/clip-vit-base-patch32", str(workspace / "clip"))
    in_process(command.replace("'~/Pictures'", "photos"), workspace)


SHELL: list[tuple[str, Callable[[str, Path], None]]] = [
    (r"(\w+=\S+ )*make [a-z-]+( [A-Z]+=\w+)*", made),
    (r"\. .venv/bin/activate", left_out),
    (r"python records/speedrun\.py", left_out),
    (r"filip new .*", a_new_study),
    (r"sed .* > workflow/config/\w+\.yaml", whole),
    (r"filip data (prepare|text_rules) .*", whole),
    (r"filip", whole),
    (r"filip search .* model=hf:openai/clip-vit-base-patch32( .*)?", with_a_local_clip),
    (r"filip (eval|explore|index|export|search) .*", in_process),
    (r"filip \w+ .*", arguments_checked),
    (r"deepspeed .*--module filip\.train .*", arguments_checked),
    (r"pip install .*", installable),
]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.splitlines()[0][:40])
def test_commands_run_or_their_arguments_are_valid(block: str, workspace: Path) -> None:
    for command in commands(block):
        check = next((check for pattern, check in SHELL if re.fullmatch(pattern, command)), None)
        assert check, f"no rule in SHELL says how to test this command of the README: {command}"
        check(command, workspace)


def test_the_card_is_valid(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    for block in blocks("yaml"):
        name = yaml.safe_load(block)["name"]
        assert load_source(name).caption_column == "alt"


@pytest.mark.slow
def test_the_study_of_the_recipe_has_a_complete_plan(workspace: Path) -> None:
    for command in (command for block in blocks("sh") for command in commands(block)):
        if command.startswith("sed "):
            whole(command, workspace)
    planned = run_snakemake("-n", cwd=workspace, config=Path("workflow/config/mine.yaml"))
    assert planned.returncode == 0, planned.stderr
    assert "rule summary" in planned.stdout and "results/mine/" in planned.stdout


def test_the_python_runs(workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """README's lines print what is below them."""
    monkeypatch.chdir(workspace)
    first, *others = blocks("python")
    exec(first, {})
    assert capsys.readouterr().out == printed_below(first)
    for block in others:
        exec(block, {})


def test_the_search_prints_what_stands_below_it(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The words to the letter, but for the folder's name as the index has it; numbers as far as CPUs agree on them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(workspace / "cache"))
    block = next(block for block in blocks("sh") if "filip search docs/scenes" in block)
    in_process(next(command for command in commands(block) if command.startswith("filip search")), workspace)
    printed = capsys.readouterr()
    heading = next(line for line in printed.err.splitlines() if line.startswith("rank"))
    result, expected = f"{heading}\n{printed.out}".split(), printed_below(block).split()
    assert len(result) == len(expected)
    for word, shown in zip(result, expected, strict=True):
        if re.fullmatch(r"[+-]?\d+\.\d+", shown):
            # a score comes from exact tokens; deviations come from the index, which a CPU fills by its own products
            assert float(word) == pytest.approx(float(shown), abs=0.4 if shown[0] in "+-" else 0.005)
        else:
            assert word.replace(f"{ROOT}/", "") == shown


def printed_below(block: str) -> str:
    """Return the block of text that follows a block of README."""
    match = re.search(r"```text\n(.*?)```", README.partition(block)[2], re.DOTALL)
    assert match
    return match[1]


def test_every_block_has_a_known_language_and_every_link_a_file() -> None:
    for page in RUN:
        languages = {language for language, _ in BLOCK.findall((ROOT / page).read_text())}
        assert languages <= {"sh", "python", "yaml", "text"}, page
    for target in re.findall(r"\]\(([^)#]+)\)", README):  # those of docs/ are followed by test_docs.py
        assert target.startswith("https://") or (ROOT / target).exists(), target


PAGES = ["README.md", "CONTRIBUTING.md", "NOTICE"]


@pytest.mark.parametrize("page", [*PAGES, *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))])
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    tops = "bench|data|docs|ds_configs|eval|filip|tests|workflow"
    for path in set(re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./*-]*[\w*/]", text)):
        if "mine" not in path:
            assert list(ROOT.glob(path)), f"{page} names {path}, which does not exist"


DOCS = Path(__file__).parents[1] / "docs"
SAME_EVERYWHERE = 5  # cells: what is printed after them is of a training, whose numbers depend on the CPU


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DOCS / "scenes", tmp_path / "scenes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    cells = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, object] = {}
    printed = []
    for cell in (cell for cell in cells if cell["cell_type"] == "code"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
        printed.append(out.getvalue())
        stored = "".join("".join(output["text"]) for output in cell["outputs"])
        assert bool(stored) and (len(printed) >= SAME_EVERYWHERE or printed[-1] == stored)
    assert printed[-1].startswith(("11 of 12", "12 of 12"))
