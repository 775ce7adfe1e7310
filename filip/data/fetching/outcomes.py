"""Record the outcome of a URL: img2dataset's status, and our "reason: detail" as its error message.

A response may also forbid the use of its image for training: X-Robots-Tag, and the W3C's TDM reservation.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

# Transient reasons, worth another try: at once in fetch, in a separate pass in download.
TRANSIENT = ("timeout", "connection", "dns", "cut_off", "http_408", "http_429", "http_5xx", "busy_host", "dead_host")

MAX_BYTES = 64 << 20  # the largest image that is fetched or read

MOST_OF_A_HEADER = 1000  # characters that are kept


@dataclass
class Answer:
    """The last answer to a URL: its time, its status, and its headers about the image's use."""

    time: float | None = None  # Unix time, seconds; None: nothing answered
    status: int | None = None  # HTTP status code
    x_robots_tag: str | None = None
    tdm_reservation: str | None = None
    refused_by: str | None = None  # the host that wants to be left alone

    def note(self, status: int | None, headers: Any) -> None:
        self.time, self.status = time.time(), status
        for name in ("x_robots_tag", "tdm_reservation"):
            values = headers.get_all(name.replace("_", "-"), []) if headers else []
            setattr(self, name, ", ".join(map(str, values))[:MOST_OF_A_HEADER] or None)


def reason_of(status: str, error: str | None) -> tuple[str | None, str]:
    """Return the bucket of one URL (None = an image) and the detail, from img2dataset's status and error message."""
    if status == "success":
        return None, ""
    reason, _, detail = (error or "other: no message").partition(":")
    return (reason, detail.strip()) if reason.replace("_", "").isalnum() else ("other", error or "")


_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def opt_out(headers: Any, agent: str | None, directives: Collection[str]) -> str | None:
    """Return the header that forbids the use of an image, or None.

    headers: with ``get_all``, as http.client gives them. agent: our name in X-Robots-Tag. directives: the ones that
    forbid it (``noai``); without any, nothing is asked.
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
        found |= {"noindex", "nofollow"} if "none" in found else set()
        if not found.isdisjoint(directives):
            return "X-Robots-Tag"
    return None
