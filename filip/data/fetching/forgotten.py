"""Remember the images that were forgotten on request, by hashes, so that no later run brings it back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from filip.files import write_json

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
        if self.urls and hash_of_url(url) in self.urls:
            return True
        return bool(self.files) and data is not None and hashlib.sha256(data).hexdigest() in self.files
