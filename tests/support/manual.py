"""The code that the manual shows, for tests that run it as printed."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def code_of(page: str, section: str = "", language: str = "python") -> list[str]:
    """Return the blocks in ``language`` of a page, or of one of its sections."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if section:
        text = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
