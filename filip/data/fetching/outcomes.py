"""Record the outcome of a URL: img2dataset's status, and our "reason: detail" as its error message.

A response may also forbid the use of its image for training: X-Robots-Tag, and the W3C's TDM reservation. What was
forgotten on request is remembered by hashes, so that no later run brings it back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.common.files import write_json

FORGOTTEN = "forgotten"  # the reason in the funnel


def hash_of_url(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()


def place_of(file: str, position: int) -> str:
    """Return the second name of an image on disk: tables and folders may call one file differently."""
    return f"{file}#{position}"


@dataclass
class Forgotten:
    """Hashes of URLs, and of files as they were fetched, that a folder of shards must not have."""

    path: Path
    urls: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()

    @staticmethod
    def load(folder: Path) -> Forgotten:
        """Return the forgotten images of a folder of shards."""
        path = folder / "_work" / "forgotten.json"
        try:
            found = json.loads(path.read_text())
        except FileNotFoundError:
            return Forgotten(path)
        return Forgotten(path, frozenset(found["urls"]), frozenset(found["files"]))

    def add(self, urls: set[str], files: set[str]) -> None:
        """Add these hashes to the file."""
        write_json(self.path, {"urls": sorted(self.urls | urls), "files": sorted(self.files | files)})

    def refuses(self, url: str, data: bytes | None = None) -> bool:
        """Return whether a URL, or the file that was fetched from it, was forgotten."""
        if url == FORGOTTEN or (self.urls and hash_of_url(url) in self.urls):
            return True
        return bool(self.files) and data is not None and hashlib.sha256(data).hexdigest() in self.files


# Transient reasons, worth another try: at once in fetch, in a separate pass in download.
TRANSIENT = ("timeout", "connection", "dns", "cut_off", "http_408", "http_429", "http_5xx", "busy_host", "dead_host")

MAX_BYTES = 64 << 20  # the largest image that is fetched or read


def reason_of(status: str, error: str | None) -> tuple[str | None, str]:
    """Return the bucket of one URL (None = an image) and the detail, from img2dataset's status and error message."""
    if status == "success":
        return None, ""
    reason, _, detail = (error or "other: no message").partition(":")
    return (reason, detail.strip()) if reason.replace("_", "").isalnum() else ("other", error or "")


AGENT = "img2dataset"  # our name in X-Robots-Tag: whoever forbids it to img2dataset means us
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")  # that forbid it: img2dataset's default
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def opt_out(headers: Any) -> str | None:
    """Return the header (of http.client's) that forbids the use of an image, or None."""
    if any(value.strip() == "1" for value in headers.get_all("tdm-reservation", [])):
        return "tdm-reservation"
    for value in headers.get_all("X-Robots-Tag", []):
        name, colon, rest = value.lower().partition(":")
        for_one = bool(colon) and "," not in name and name.strip() not in _WITH_VALUE
        if for_one and name.strip() not in (AGENT, "*"):
            continue
        given = {part.strip() for part in (rest if for_one else value.lower()).split(",")}
        if not given.isdisjoint((*DIRECTIVES, "none")):  # none: noindex and nofollow
            return "X-Robots-Tag"
    return None
