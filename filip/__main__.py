"""Run every command as ``filip``: it lists them, ``filip data download key=value ...`` runs ``filip.data.download``.

A command is a module with an ``if __name__ == "__main__"`` block; nothing has to be registered. Its line in the list
is the first line of the docstring of the function that it runs.
"""

from __future__ import annotations

import ast
import difflib
import functools
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

from filip.cli.extras import missing_extra
from filip.common.errors import UserError, reader_may_leave, stopped_by_ctrl_c

PACKAGE = Path(__file__).resolve().parent
GROUPS = {
    "data": "From a list of URLs to shards with candidate captions",
    "train": "Training with DeepSpeed",
    "eval": "Evaluation of trained models",
    "study": "Measurements that a study names",
    "report": "Tables, figures and pages of a study",
    "explore": "A page to look at what models see, as a file",
    "index": "Search a folder of images by text",
    "": "Other",
}
HELP = ("-h", "--help")
_ENTRY = 'if __name__ == "__main__":'


class Command(NamedTuple):
    """A command: ``words`` as they are typed, the module that they run, and one line about it."""

    words: tuple[str, ...]
    module: str
    about: str

    @property
    def group(self) -> str:
        """Return the key of GROUPS: the longest that the words begin with; "" for a command outside them."""
        starts = (" ".join(self.words[:length]) for length in range(len(self.words), 0, -1))
        return next((start for start in starts if start in GROUPS), "")


@functools.cache
def commands() -> list[Command]:
    """Return all commands of the package, found by reading its files; none of them is imported."""
    registered = []
    for file in PACKAGE.rglob("*.py"):
        source = file.read_text(encoding="utf-8")
        if f"\n{_ENTRY}" in source and file != Path(__file__).resolve():
            parts = file.relative_to(PACKAGE).with_suffix("").parts
            words = parts[:-1] if parts[-1] == "__main__" else parts
            registered.append(Command(words, ".".join(("filip", *words)), _about(source)))
    return sorted(registered)


def _about(source: str) -> str:
    """Return the first line of the docstring of the function given to ``run_command``, or else of the module."""
    tree = ast.parse(source)
    documented = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    run = [
        call.args[0].id
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == "run_command"
        and isinstance(call.args[0], ast.Name)
    ]
    function = next((documented[name] for name in run if name in documented), None)
    text = (function and ast.get_docstring(function)) or ast.get_docstring(tree) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "")


def overview(registered: list[Command]) -> str:
    """Return the list that ``filip`` prints: the commands by group, one line each."""
    width = max(len(" ".join(command.words)) for command in registered)
    lines = ["filip COMMAND key=value ...   (filip COMMAND --help lists the keys)"]
    for group, title in GROUPS.items():
        members = [command for command in registered if command.group == group]
        lines += ["", f"{title}:"] if members else []
        lines += [f"  {' '.join(command.words):<{width}}  {command.about}" for command in members]
    return "\n".join(lines)


def choose(arguments: list[str], registered: list[Command]) -> tuple[Command, list[str]]:
    """Return the longest command that the arguments begin with, and what follows it. UserError if there is none."""
    by_words = {command.words: command for command in registered}
    for length in range(len(arguments), 0, -1):
        words = _words(arguments[:length])
        if command := by_words.get(words):
            rest = arguments[length:]
            if rest and _is_word(rest[0]) and any(other[:length] == words for other in by_words.keys() - {words}):
                break  # not an option of `filip eval` but a mistyped command below it
            return command, rest
    typed = " ".join(word for word in arguments if "=" not in word and not word.startswith("-"))
    names = [" ".join(words) for words in by_words]
    first = typed.partition(" ")[0]
    close = difflib.get_close_matches(typed, names, 3)
    if not close and first not in names:
        close = difflib.get_close_matches(first, names, 1)
    group = next((g for g in GROUPS if g and g not in names and f"{typed} ".startswith(f"{g} ")), None)
    if group and not (typed != group and difflib.get_close_matches(typed, names, 1, cutoff=0.85)):
        below = [name for name in names if name.startswith(f"{group} ")]
        raise UserError(f"{group!r} is a group of commands; give one of {', '.join(below)}")
    close += [name for name in names if name.endswith(f" {typed}") and name not in close]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; `filip` lists all commands"
    if not close and first in names:
        hint = f": `filip {first}` takes key=value, e.g. model=emoji (see --help)"
    raise UserError(f"there is no command {typed or arguments[0]!r}{hint}")


def _words(arguments: list[str]) -> tuple[str, ...]:
    return tuple(word.replace("-", "_") for word in arguments)


def _is_word(argument: str) -> bool:
    return argument.replace("-", "").replace("_", "").isalpha() and not argument.startswith("-")


def run(arguments: list[str]) -> None:
    """Print the list, or run a command as ``python -m`` would."""
    registered = commands()
    if arguments in (["--version"], ["-V"], ["version"]):
        from filip import __version__

        print(f"filip {__version__}")
        return
    if arguments[:1] == ["help"]:  # `filip help train` is `filip train --help`
        arguments = [*arguments[1:], "--help"]
    words = _words([word for word in arguments if word not in HELP])
    group = [command for command in registered if command.words[: len(words)] == words]
    if group and words not in {command.words for command in registered}:
        print(overview(group))
        return
    command, rest = choose(arguments, registered)
    sys.argv = [command.module, *rest]
    try:
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    except ModuleNotFoundError as error:
        raise missing_extra(error, command.module) from error


def main() -> None:
    """Run the entry point ``filip``: a UserError becomes one plain message and exit code 2."""
    try:
        with stopped_by_ctrl_c(), reader_may_leave():
            run(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def script() -> None:
    """Run the command of this process, for which Ctrl-C comes too late once it has ended."""
    with stopped_by_ctrl_c(ends=True):
        main()


if __name__ == "__main__":
    script()
