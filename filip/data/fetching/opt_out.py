"""Read from a response whether its owner allows its use for training: X-Robots-Tag, and the W3C's TDM reservation."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def opt_out(headers: Any, agent: str | None, directives: Collection[str]) -> str | None:
    """Return the header that forbids the use of an image, or None.

    headers: with ``get_all``, as http.client gives them. agent: our name in X-Robots-Tag. directives: those that forbid
    it (``noai``); without any, nothing is asked.
    """
    if not directives:
        return None
    if any(value.strip() == "1" for value in headers.get_all("tdm-reservation", [])):
        return "tdm-reservation"
    for value in headers.get_all("X-Robots-Tag", []):
        name, colon, rest = value.lower().partition(":")
        for_one = bool(colon) and "," not in name and name.strip() not in _WITH_VALUE
        if for_one and name.strip() not in (agent or "", "*"):
            continue
        found = {part.strip() for part in (rest if for_one else value.lower()).split(",")}
        if not found.isdisjoint(directives):
            return "X-Robots-Tag"
    return None
