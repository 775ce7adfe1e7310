"""Print the lines and tokens of each package as git knows them, or what a module of ours imports.

``make size`` prints the packages, with sums for the product, the engine and the tests. ``python -m bench.size closure``
prints how many files and lines ``filip.train.loop`` and ``filip.load`` import. Nothing fails on a number.
"""

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("*.py", "*.smk", "Snakefile")
OTHERS = ("*.cpp", "*.h", "*.js")
IGNORED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def git_files(*patterns: str) -> list[Path]:
    """Return the files that git knows and that are there."""
    names = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.splitlines() if (ROOT / name).is_file()]


def package_of(file: Path) -> str:
    """Return ``filip/data``, ``filip`` for its top, ``tests``, and so on."""
    if file.parts[0] == "filip" and len(file.parts) > 2:
        return f"filip/{file.parts[1]}"
    return file.parts[0] if len(file.parts) > 1 else "top level"


def sizes(file: Path) -> tuple[int, int, int]:
    """Return 1, the lines and the Python tokens of a file."""
    source = (ROOT / file).read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return 1, len(source.splitlines()), sum(token.type not in IGNORED for token in tokens)


def print_packages() -> None:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for file in git_files(*PYTHON):
        package = package_of(file)
        kind = {"tests": "tests", "late-interaction": "engine"}.get(package, "product")
        for name in (package, f"**{kind}**"):
            counts[name] = [a + b for a, b in zip(counts[name], sizes(file), strict=True)]
    print("| package | files | lines | tokens |\n|---|--:|--:|--:|")
    for name in sorted(counts, key=lambda name: (name.startswith("**"), name)):
        print(f"| {name} | {' | '.join(f'{count:,}' for count in counts[name])} |")
    others = Counter({package_of(file): 0 for file in git_files(*OTHERS)})
    for file in git_files(*OTHERS):
        others[package_of(file)] += len((ROOT / file).read_text(encoding="utf-8").splitlines())
    print("\nC++ and JavaScript:", ", ".join(f"{name} {lines:,} lines" for name, lines in sorted(others.items())))


def imported(file: Path) -> set[str]:
    """Return the modules that a file imports when it is imported itself; those under TYPE_CHECKING are not."""
    found: set[str] = set()
    expected: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while expected:
        node = expected.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            expected += ast.iter_child_nodes(node)
    return found


def closure(start: str) -> dict[str, Path]:
    """Return the modules of ours, the engine's too, that are imported with ``start``: name to file."""
    files = {
        ".".join(path.with_suffix("").parts).removeprefix("late-interaction.").removesuffix(".__init__"): ROOT / path
        for path in git_files("*.py")
    }
    found: dict[str, Path] = {}
    expected = [start]
    while expected:
        name = expected.pop()
        if name in files and name not in found:
            found[name] = files[name]
            expected += [*imported(files[name]), name.rpartition(".")[0]]
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["closure"]:
        for start in sys.argv[2:] or ["filip.train.loop", "filip.api"]:
            found = closure(start)
            lines = Counter[str]()
            for file in found.values():
                lines[package_of(file.relative_to(ROOT))] += len(file.read_text(encoding="utf-8").splitlines())
            print(f"{start}: {len(found)} files, {sum(lines.values()):,} lines")
            print("   ", ", ".join(f"{package} {count:,}" for package, count in lines.most_common()))
    else:
        print_packages()
