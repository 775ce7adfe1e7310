"""Keep local copies of the tars that a training reads from elsewhere (``s3://``, ``gs://``, ``hf://``, ``https://``).

A source that is elsewhere becomes a local folder of links. So the loader reads it in the same order as local tars, and
whole tars are fetched when one of their pairs comes up.
"""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fsspec
from braceexpand import braceexpand

from filip.common.errors import UserError, first_line
from filip.common.files import digest, file_state, locked, replacing
from filip.data.remote_tars import ABSENT, address, explained, state_of
from filip.loading.config import DataConfig, Source

THREADS = 16  # questions at a time about the files of a bucket


@dataclass(frozen=True)
class TarCache:
    """A local folder with copies of tars that are elsewhere: those used last, up to a limit."""

    folder: Path
    limit: float  # bytes

    @staticmethod
    def of(data: DataConfig) -> TarCache:
        return TarCache(Path(data.cache).expanduser(), data.cache_gb * 1e9)

    def open(self, tar: Path) -> int:
        """Return a descriptor of a shard's tar, fetched first if it is in a bucket and not here.

        A copy that another process removes stays readable for those that have opened it. Raises UserError, from an
        OSError if another attempt can help.
        """
        if (url := address(tar)) is None:
            return os.open(tar, os.O_RDONLY)
        while True:
            with suppress(FileNotFoundError):  # removed just now, to make room
                return os.open(self._copy(tar, url), os.O_RDONLY)

    def _copy(self, tar: Path, url: str) -> Path:
        state = state_of(tar)
        if state is None:
            raise UserError(f"there is no {url}{ABSENT}")
        name = digest([url, state])[:16]
        copy = self.folder / "tars" / f"{name}-{tar.name}"
        with locked(self.folder / "locks" / name[:2]):
            if not copy.exists():
                self._make_room(state[0] or 0)
                try:
                    files, place = fsspec.core.url_to_fs(url)
                    with replacing(copy) as part:
                        files.get_file(place, str(part))
                        if state[0] not in (None, size := part.stat().st_size):
                            raise OSError(errno.EIO, f"{size:,} of {state[0]:,} bytes came")
                except Exception as error:
                    cause = error if isinstance(error, OSError) else OSError(errno.EIO, first_line(error))
                    raise explained(url, error, ABSENT) from cause
                self._make_room(0)  # others may have fetched at the same time
            os.utime(copy)  # the last to be removed
        return copy

    def _make_room(self, size: int) -> None:
        """Remove the copies that have not been used for longest, so that ``size`` bytes fit below the limit."""
        states = {path: state for path in (self.folder / "tars").glob("*.tar") if (state := file_state(path))}
        for path in sorted(states, key=lambda path: states[path][1]):
            if sum(size for size, _ in states.values()) + size <= self.limit:
                return
            path.unlink(missing_ok=True)
            del states[path]

    def local_source(self, source: Source) -> Source:
        """Return the source if its shards are here; else one with a link to each tar, and with copies of its side-cars.

        Raises UserError if there is no shard, or two have one name.
        """
        if "://" not in source.shards:
            return source
        urls = tar_urls(source.shards)
        names = [url.rpartition("/")[2] for url in urls]
        if len({*names}) < len(names) or not all(name.endswith(".tar") for name in names):
            raise UserError(f"{source.shards}: each address must end in a NAME.tar of its own; give several sources")
        elsewhere = source.captions is not None and "://" in source.captions
        sidecars = [f"{source.captions}/{name[:-4]}.parquet" for name in names] if elsewhere else []
        with suppress(Exception):  # one answer about all files, where there is a listing
            listing, place = fsspec.core.url_to_fs(urls[0].rpartition("/")[0])
            listing.ls(place)
        with ThreadPoolExecutor(THREADS) as pool:
            states = list(pool.map(state_of, [*urls, *sidecars]))
            if None in states[: len(urls)]:
                raise UserError(f"there is no {urls[states.index(None)]}{ABSENT}")
            folder = self.folder / digest([urls, sidecars, states])[:16]
            with locked(folder / "lock"):
                for name, url in zip(names, urls, strict=True):
                    with suppress(FileExistsError):
                        (folder / name).symlink_to(url)
                present = [url for url, state in zip(sidecars, states[len(urls) :], strict=True) if state is not None]
                list(pool.map(partial(_bring, folder / "captions"), present))
        return replace(source, shards=str(folder), captions=str(folder / "captions") if elsewhere else source.captions)


def _bring(folder: Path, url: str) -> None:
    """Fetch a small file into a folder that has only files of this state."""
    path = folder / url.rpartition("/")[2]
    if path.exists():
        return
    try:
        files, place = fsspec.core.url_to_fs(url)
        with replacing(path) as part:
            files.get_file(place, str(part))
            os.utime(part, (0, 0))  # the time of the fetch would look like a change of the data
    except Exception as error:
        raise explained(url, error) from error


def tar_urls(shards: str) -> list[str]:
    """Return the addresses of a source's shards: braces expanded, or the tars in a bucket's folder."""
    urls = list(braceexpand(shards))
    if len(urls) > 1 or urls[0].endswith(".tar"):
        return urls
    folder = urls[0].rstrip("/")
    try:
        files, path = fsspec.core.url_to_fs(folder)
        urls = sorted(files.unstrip_protocol(tar) for tar in files.glob(f"{path}/*.tar"))
    except Exception as error:
        raise explained(folder, error, ABSENT) from error
    if not urls:
        raise UserError(
            f"no shards: {folder} lists no *.tar; give the shards themselves, e.g. {folder}/{{00000..00099}}.tar"
        )
    return urls
