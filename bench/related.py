"""The lists of docs/related.md: which paper each term of the loss and each protocol comes from.

    python -m bench.related

Writes what is between the two marks of the page, from the ``citation`` of each term and protocol.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.readme import put_on_page
from filip.command import option, run_command
from filip.eval.protocols import protocols
from filip.train.config import TERMS  # with those of filip_research

BEGIN, END = "<!-- citations:begin -->", "<!-- citations:end -->"


@dataclass
class Related:
    page: str = option("docs/related.md", "file with the two marks, rewritten in place")


def main(config: Related) -> None:
    """Write the lists into the page."""
    put_on_page(Path(config.page), lists(), (BEGIN, END))


class Cited(Protocol):
    @property
    def citation(self) -> tuple[str, ...]: ...


def lists() -> str:
    """Return both tables as Markdown."""
    return f"{_table('term of the loss', TERMS)}\n\n{_table('protocol', protocols())}"


def _table(title: str, cited: Mapping[str, Cited]) -> str:
    lines = [f"| {title} | from |", "|---|---|"]
    lines += [f"| `{name}` | {'; '.join(one.citation)} |" for name, one in sorted(cited.items())]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Related)
