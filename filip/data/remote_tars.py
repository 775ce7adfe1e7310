"""Keep the tars of a data set in a bucket (``s3://``, ``gs://``, ``hf://``), and its small files in a local folder.

A finished shard is sent, and in the place of its tar stays a link to the address: ``00000.tar -> s3://…/00000.tar``. So
every stage that reads only descriptions and captions works as it does with local tars, the few that read images fetch
one tar at a time, and a training keeps copies of the tars that it is reading (:mod:`filip.loading.tar_cache`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from filip.common.errors import UserError, first_line
from filip.common.files import file_state, replacing, sha256_of, write_json

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
OWNER = "filip.json"  # in the bucket: which folder fills it
ABSENT = "; does data.sources name the shards as they are, and all of them?"
# What servers call the version of a file
MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "mtime", "created")


def address(tar: Path) -> str | None:
    """Return where the tar of a shard is if it is in a bucket; None for a file, or if there is none."""
    target = os.readlink(tar) if tar.is_symlink() else ""
    return target if "://" in target else None


def is_there(tar: Path) -> bool:
    """Return whether a shard has a tar, here or in a bucket."""
    return tar.exists() or address(tar) is not None


def claim(tars: str, folder: Path) -> None:
    """Claim a bucket's folder for the shards of ``folder``, before anything is fetched for it.

    Raises UserError if it cannot be written to, or another folder's shards are sent there.
    """
    if "://" not in tars:
        raise UserError(f"tars={tars} is not an address of a bucket, as s3://bucket/folder; out= is the local folder")
    owner, mine = f"{tars.rstrip('/')}/{OWNER}", f"{os.uname().nodename}:{folder}"
    note = folder / "_work" / "tars.json"
    try:
        files, path = fsspec.core.url_to_fs(owner)
        found = files.cat_file(path).decode() if files.exists(path) else None
        # the folder may have moved since it began to fill the bucket
        if found is not None and found != mine and not (note.exists() and found in note.read_text()):
            raise UserError(f"tars={tars} is filled from {found}: give another folder of the bucket, or delete {owner}")
        if found is None:
            files.pipe_file(path, mine.encode())
    except UserError:
        raise
    except Exception as error:
        raise explained(tars, error) from error
    write_json(note, {"tars": tars, "owner": found or mine})


def send(tar: Path, tars: str, *more: Path) -> None:
    """Send a finished tar, and then the files ``more``, to the bucket; a link to it takes the tar's place.

    An object of a bucket appears when all of its bytes are there, so a killed worker leaves none that is cut off.
    """
    for path in (tar, *more):
        url = f"{tars.rstrip('/')}/{path.name}"
        files, place = fsspec.core.url_to_fs(url)
        files.put_file(str(path), place)
    tar.unlink()
    tar.symlink_to(f"{tars.rstrip('/')}/{tar.name}")


def size_of(tar: Path) -> int:
    """Return the bytes of a shard's tar, here or in a bucket. Raises UserError if it is not in its bucket."""
    url = address(tar)
    if url is None:
        return tar.stat().st_size
    try:
        files, place = fsspec.core.url_to_fs(url)
        return int(files.info(place)["size"])
    except Exception as error:
        raise explained(url, error) from error


def hash_of(tar: Path) -> str:
    """Return the SHA-256 of a shard's tar, as hex digits; one in a bucket is read there.

    Raises UserError if the bucket has none.
    """
    url = address(tar)
    if url is None:
        return sha256_of(tar)
    try:
        with fsspec.open(url, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Exception as error:
        raise explained(url, error) from error


def state_of(tar: Path | str) -> tuple[Any, ...] | None:
    """Return size and time of a shard's tar; of one in a bucket, size and version; None if there is none.

    Raises UserError for a bucket that does not answer.
    """
    url = tar if isinstance(tar, str) else address(tar)
    if url is None:
        return file_state(tar)
    try:
        files, place = fsspec.core.url_to_fs(url)
        about = files.info(place)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise explained(url, error, ABSENT) from error
    return about.get("size"), next((str(about[name]) for name in MARKS if name in about), "")


@contextmanager
def local(tar: Path, folder: Path | None = None) -> Iterator[Path]:
    """Yield a file with the bytes of a shard's tar; one from a bucket is fetched into ``folder``, and removed again."""
    url = address(tar)
    if url is None:
        yield tar
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        copy = Path(scratch) / tar.name
        try:
            files, place = fsspec.core.url_to_fs(url)
            files.get_file(place, str(copy))
        except Exception as error:
            raise explained(url, error) from error
        yield copy


def fetched(url: str, folder: Path) -> str:
    """Copy a file of a bucket, the files that a pattern matches, or all of a folder; return where they are now.

    url: e.g. ``s3://bucket/list.csv``, ``hf://datasets/USER/NAME/*.parquet``. folder: holds nothing else; what it has
    already is fetched again only if it has changed in the bucket. Raises UserError if there is nothing.
    """
    note = folder.with_name(f"{folder.name}.json")
    before = json.loads(note.read_text()) if note.exists() else {}
    try:
        files, path = fsspec.core.url_to_fs(url)
        whole = "*" not in path and files.isdir(path)
        paths = files.find(path) if whole else sorted(files.glob(path))
        if not paths:
            raise FileNotFoundError(url)
        base = f"{path.rstrip('/')}/" if whole else path.partition("*")[0].rpartition("/")[0] + "/"
        names = {name.removeprefix(base): name for name in paths}
        if outside := [name for name in names if ".." in name.split("/") or name.startswith("/")]:
            raise UserError(f"{url} has a file {outside[0]!r}, which would be written elsewhere: rename it")
        state = {name: str(files.ukey(names[name])) for name in names}
        for name in names:
            if before.get(name) != state[name] or not (folder / name).exists():
                with replacing(folder / name) as part:
                    files.get_file(names[name], str(part))
        for name in before.keys() - names.keys():
            (folder / name).unlink(missing_ok=True)
    except UserError:
        raise
    except Exception as error:
        raise explained(url, error) from error
    write_json(note, state)
    return str(folder if whole else Path(glob.escape(str(folder)), "*") if "*" in path else folder / next(iter(names)))


def explained(url: str, error: Exception, absent: str = ", or no bucket of this name") -> UserError:
    """Return a sentence for what fsspec raised at an address. absent: what else it means that nothing is there."""
    if isinstance(error, ImportError):
        package = PACKAGES.get(url.partition(":")[0], error.name or "")
        return UserError(f"{url} needs the package {package}: pip install {package}")
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no {url}{absent}")
    return UserError(f"cannot open {url}: {type(error).__name__}: {first_line(error)}")
