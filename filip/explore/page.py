"""Assemble the page as one file: HTML, CSS and JavaScript from ``assets/``, and the data that it starts with.

Nothing in it is loaded from anywhere: its content security policy allows its own parts, the pictures inside it and, in
live mode, the server that it came from.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from filip import resources

ASSETS = Path(__file__).resolve().parent / "assets"
SCRIPTS = (
    "tokenizer.js",
    "towers.js",
    "pixels.js",
    "feed_static.js",
    "feed_live.js",
    "pictures.js",
    "panel.js",
    "search.js",
    "app.js",
)  # in this order


def page(data: dict[str, Any], live: bool = False) -> str:
    """Return the whole page. data: see :func:`filip.explore.export.static_data` and :mod:`filip.explore.app`."""
    parts = {
        "style": resources.page_style() + (ASSETS / "style.css").read_text(encoding="utf-8"),
        "script": "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS),
        "data": in_script(data),
    }
    frame = (ASSETS / "page.html").read_text(encoding="utf-8")
    whole = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], frame)
    return resources.sealed(whole, "data: 'self'" if live else "data:", "'self'" if live else "'none'")


def in_script(data: Any) -> str:
    """Return JSON that is safe inside a ``<script>``, even if a caption contains ``</script>``."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
