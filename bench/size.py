"""Print the lines and files of each package, tests and bench included, as git knows them: ``make size``.

Beside each is its budget (tests/budget.yaml), which a test holds; only a commit of its own may raise one.
"""

import subprocess
from collections import Counter
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BUDGET = ROOT / "tests/budget.yaml"
SOURCES = ("*.py", "*.smk", "Snakefile", "*.cpp", "*.h", "*.js")
CODE = (".cpp", ".h", ".js")  # counted apart from Python


def measure() -> tuple[Counter[str], Counter[str]]:
    """Return the lines and the files of each package: ``filip/data``, ``filip`` (its top), ``tests``, and so on."""
    names = subprocess.run(["git", "ls-files", *SOURCES], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines: Counter[str] = Counter()
    files: Counter[str] = Counter()
    for name in names.splitlines():
        if not (ROOT / name).is_file():
            continue  # removed, and not yet committed
        parts = Path(name).parts
        package = parts[0] if len(parts) > 1 else "top level"
        if parts[0] == "filip" and len(parts) > 2:
            package = f"filip/{parts[1]}"
        if name.endswith(CODE):
            package = "C++ and JavaScript"
        lines[package] += len((ROOT / name).read_text(encoding="utf-8").splitlines())
        files[package] += 1
    return lines, files


def table() -> str:
    """Return the table as Markdown."""
    lines, files = measure()
    budget = yaml.safe_load(BUDGET.read_text(encoding="utf-8"))["lines"]
    rows = [f"| `{name}` | {lines[name]:,} | {files[name]} | {budget.get(name, 0):,} |" for name in sorted(lines)]
    python = sum(count for name, count in lines.items() if name != "C++ and JavaScript")
    return "\n".join(
        ["| package | lines | files | budget |", "|---|--:|--:|--:|", *rows]
        + [f"| **all Python** | **{python:,}** | | {sum(budget.values()) - budget['C++ and JavaScript']:,} |"]
    )


if __name__ == "__main__":
    print(table())
