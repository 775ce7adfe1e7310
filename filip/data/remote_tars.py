"""Find files in a bucket or on a server (``s3://``, ``gs://``, ``hf://``, ``https://``): tars to train on, and lists.

A training reads a tar that is elsewhere by a local link to its address, ``00000.tar -> s3://…/00000.tar``, and keeps
copies of the tars that it is reading (:mod:`filip.loading.tar_cache`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec

from filip.common.errors import UserError, first_line
from filip.common.files import file_state

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
ABSENT = "; does data.sources name the shards as they are, and all of them?"
# What servers call the version of a file
MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "Last-Modified", "LastModified", "mtime", "created")


def address(tar: Path) -> str | None:
    """Return where the tar of a shard is if it is in a bucket; None for a file, or if there is none."""
    target = os.readlink(tar) if tar.is_symlink() else ""
    return target if "://" in target else None


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


def explained(url: str, error: Exception, absent: str = ", or no bucket of this name") -> UserError:
    """Return a sentence for what fsspec raised at an address. absent: what else it means that nothing is there."""
    if isinstance(error, ImportError):
        package = PACKAGES.get(url.partition(":")[0], error.name or "")
        return UserError(f"{url} needs the package {package}: pip install {package}")
    if isinstance(error, FileNotFoundError):
        return UserError(f"there is no {url}{absent}")
    return UserError(f"cannot open {url}: {type(error).__name__}: {first_line(error)}")
