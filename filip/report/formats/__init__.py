"""The formats of a table, by file name extension. All show the same cells; none computes anything."""

from __future__ import annotations

from collections.abc import Callable

from filip.report.formats.csv import to_csv
from filip.report.formats.html import to_html
from filip.report.formats.latex import to_latex
from filip.report.formats.markdown import to_markdown
from filip.report.table import Table

FORMATS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "csv": to_csv,
    "tex": to_latex,
    "html": to_html,
}
