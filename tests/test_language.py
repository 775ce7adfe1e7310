"""Habits that make a reader stop, counted in pages, docstrings and comments, may not become as frequent as they were.

``python -m tests.test_language [CHECKOUT]`` prints the counts by place. The limits are half of the counts of 6407e063.
Per 10,000 lines of Python other projects have 0 to 10 of the first (timm 0.2, sentence-transformers 10.4), 0 to 7.5 of
each other (webdataset 0 to 1.5), and no such names.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("docs", "README.md", "CHANGELOG.md", "filip", "filip_demo", "filip_research", "workflow", "bench")
PLACES += ("late-interaction", "tests")
HABITS = {
    "what is …": (331, r"(?i)\bwhat (?:is|are|was|were|has|have|they|it|the|an?|one|no|each|others?|its|can)\b"),
    "all that, those of": (184, r"(?i)\b(?:all|those) (?:that|who|which|of (?:which|it|them))\b|\b(?:that|those) of\b"),
    "files that say": (190, r"(?i)\b(?:says?|said|tells?|told)\b"),
    "things that stand or lie": (95, r"(?i)\b(?:stands?|stood|lies?|lay)\b"),
    "whose": (100, r"(?i)\bwhose\b"),
    "What … begins a sentence": (21, r"(?:^|[.!?:] )(?:What|(?:Those|All) that|Those who|Who) \w+[^?]*?[.] "),
}
PRONOUNS = [
    "found",
    "own",
    "known",
    "kept",
    "wanted",
    "one",
    "given",
    "told",
    "those",
    "others",
    "another",
    "read",
    "asked",
]
NAMES = "names that are pronouns or participles"


def prose(path: Path, source: str) -> str:
    """Return a page without its code, or a module's docstrings and comments."""
    if path.suffix == ".md":
        source = re.sub(r"(?ms)^(```|:::).*?^(```|\Z)|^    .*?$", "", source)
        return re.sub(r"`[^`]*`", "`code`", source)
    places = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, places)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return "\n\n".join([*docstrings, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def names(source: str) -> list[str]:
    """Return each variable and parameter that a module binds."""
    nodes = list(ast.walk(ast.parse(source)))
    variables = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return [*variables, *(node.arg for node in nodes if isinstance(node, ast.arg))]


def count(place: Path) -> Counter[str]:
    """Return how often each habit occurs in a file or below a folder, with the lines and names there."""
    counts: Counter[str] = Counter()
    for path in [place] if place.is_file() else [*place.rglob("*.md" if place.name == "docs" else "*.py")]:
        source = path.read_text(encoding="utf-8")
        text = " ".join(prose(path, source).split())
        counts.update({habit: len(re.findall(pattern, text)) for habit, (_, pattern) in HABITS.items()})
        bound = names(source) if path.suffix == ".py" else []
        counts.update(
            {"lines": source.count("\n"), "names": len(bound), NAMES: sum(name in PRONOUNS for name in bound)}
        )
    return counts


def test_habits_are_half_as_frequent_as_they_were() -> None:
    total = sum((count(ROOT / place) for place in PLACES), Counter())
    limits = {NAMES: 840, **{habit: limit for habit, (limit, _) in HABITS.items()}}
    assert {habit: total[habit] for habit, limit in limits.items() if total[habit] > limit} == {}


if __name__ == "__main__":
    root = Path(sys.argv[1]) if sys.argv[1:] else ROOT
    columns = {place: count(root / place) for place in PLACES if (root / place).exists()}
    print("", *columns, "all", sep=" | ")
    for row in ("lines", *HABITS, "names", NAMES):
        print(row, *(c[row] for c in columns.values()), sum(c[row] for c in columns.values()), sep=" | ")
