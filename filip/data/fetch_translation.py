"""OPUS-MT models for back-translation, from the Hugging Face hub or a mirror of it.

filip data fetch_translation pivots=[de,ru] out=models/opus-mt

Two models per pivot, about 300 MB each. A file that was cut off is continued, and each is compared with the checksum
that the hub states. The models are then converted for CTranslate2; ``back_translation.models`` names the folder.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filip.command import MISSING, option, run_command
from filip.data.engines.marian import ready_folder
from filip.errors import UserError
from filip.progress import Progress

TIMEOUT = 60.0  # seconds without a byte
TRIES = 5  # of one file, each from where the last one ended
PIECE = 1 << 20
NEEDED = ("config.json", "vocab.json", "source.spm", "target.spm", "tokenizer_config.json")
OPTIONAL = ("generation_config.json",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that there is


@dataclass
class FetchConfig:
    pivots: list[str] = option(MISSING, "pivot languages, e.g. [de,ru]")
    out: str = option(
        MISSING,
        "folder of the models: one folder for each direction, OUT/en-de and OUT/de-en",
        writes="folder",
    )
    hub: str = option("https://huggingface.co", "the hub, or a mirror with the same layout")
    name: str = option("Helsinki-NLP/opus-mt-{source}-{target}", "name of the models on the hub")
    revision: str = option("main", "branch, tag or commit")
    convert: bool = option(
        True, "convert for CTranslate2 now (needs transformers and torch), not on first use"
    )


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model as the hub describes it. sha256: of large files; others have git's hash only."""

    path: str
    size: int
    git_sha1: str
    sha256: str | None


def main(config: FetchConfig) -> None:
    """Fetch OPUS-MT models for the engine marian: with progress, checksums, and going on after a break."""
    for pivot in config.pivots:
        for source, target in (("en", pivot), (pivot, "en")):
            folder = Path(config.out) / f"{source}-{target}"
            fetch_model(config.hub, config.name.format(source=source, target=target), config.revision, folder)
            if config.convert:
                ready_folder(folder, pivot)
    print(
        f"{config.out}: back_translation: {{engine: marian, pivots: {config.pivots}, models: {config.out}}}"
    )


def fetch_model(hub: str, name: str, revision: str, folder: Path) -> None:
    """Fetch the files of a model into ``folder``. Raises UserError where that is impossible."""
    files = list_files(hub, name, revision)
    weights = next((path for path in WEIGHTS if path in files), None)
    missing = [path for path in NEEDED if path not in files] + ([] if weights else [" or ".join(WEIGHTS)])
    if missing:
        raise UserError(f"{hub}/{name} has no {', '.join(missing)}: it is no OPUS-MT model for transformers")
    wanted = [files[path] for path in (*NEEDED, *OPTIONAL, str(weights)) if path in files]
    folder.mkdir(parents=True, exist_ok=True)
    todo = [file for file in wanted if not (folder / file.path).exists()]
    with Progress(f"fetch {name}", "kB", sum(file.size for file in todo) // 1000) as progress:
        for file in todo:
            url = f"{hub.rstrip('/')}/{name}/resolve/{quote(revision)}/{quote(file.path)}"
            fetch_file(url, file, folder / file.path, progress)


def list_files(hub: str, name: str, revision: str) -> dict[str, RemoteFile]:
    """The files of a model by path."""
    url = f"{hub.rstrip('/')}/api/models/{name}/tree/{quote(revision)}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            entries: list[dict[str, Any]] = json.load(answer)
    except urllib.error.HTTPError as error:
        known = "it has no such model or revision" if error.code in (401, 404) else error.reason
        raise UserError(f"{url}: HTTP {error.code}, {known}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot ask {hub} for {name}: {error}. Where this machine has no network, fetch on "
            "another and copy the folder"
        ) from error
    return {
        entry["path"]: RemoteFile(
            entry["path"], entry["size"], entry["oid"], (entry.get("lfs") or {}).get("oid")
        )
        for entry in entries
        if entry["type"] == "file"
    }


def fetch_file(url: str, file: RemoteFile, path: Path, progress: Progress) -> None:
    """Fetch one file, from where an earlier attempt was cut off. Raises UserError if it cannot be had whole."""
    part = path.with_name(f".{path.name}.part")
    problem = ""
    for _ in range(TRIES):
        begun = part.stat().st_size if part.exists() else 0
        if begun > file.size:
            part.unlink()
            begun = 0
        try:
            if begun < file.size or not part.exists():
                for length in _append(url, part, begun):
                    progress.add(length)
        except (OSError, urllib.error.URLError) as error:
            problem = str(error)
        if part.exists() and part.stat().st_size == file.size:
            if _checksum(part, file) == (file.sha256 or file.git_sha1):
                part.replace(path)
                return
            part.unlink()
            problem = f"its checksum is not {file.sha256 or file.git_sha1}"
    raise UserError(
        f"{url}: {problem or 'the connection was closed early'}, {TRIES} times. What has come is kept: run the same "
        "command again to continue"
    )


def _append(url: str, part: Path, begun: int) -> Iterator[int]:
    """Write what follows the first ``begun`` bytes; yields the kilobytes of each piece."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    with ExitStack() as stack:
        answer = stack.enter_context(urllib.request.urlopen(request, timeout=TIMEOUT))
        # a server that does not know ranges sends everything again
        target = stack.enter_context(open(part, "ab" if answer.status == 206 else "wb"))
        while piece := answer.read(PIECE):
            target.write(piece)
            yield len(piece) // 1000


def _checksum(path: Path, file: RemoteFile) -> str:
    """SHA-256 of a large file, git's SHA-1 of others, as the hub states it."""
    found = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
    with open(path, "rb") as opened:
        while piece := opened.read(PIECE):
            found.update(piece)
    return found.hexdigest()


if __name__ == "__main__":
    run_command(main, FetchConfig)
