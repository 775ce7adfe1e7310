"""Record the outcome of a URL: img2dataset's status, and our "reason: detail" as its error message."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

# Transient reasons, worth another try: at once in fetch, in a separate pass in download.
TRANSIENT = ("timeout", "connection", "dns", "cut_off", "http_408", "http_429", "http_5xx", "busy_host")

MAX_BYTES = 64 << 20  # the largest image that is fetched or read

MOST_OF_A_HEADER = 1000  # characters that are kept


@dataclass
class Answer:
    """The last answer to a URL: when it came, its status, and what it says of the image's use."""

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
