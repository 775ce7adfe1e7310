"""Read the tars of a bucket, a server or a command from front to back, and again where a connection breaks."""

from __future__ import annotations

import itertools
import logging
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec
import webdataset
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from filip.common.errors import UserError
from filip.data.remote_tars import explained
from filip.loading.config import Source

log = logging.getLogger(__name__)
ATTEMPTS = 4  # at a shard: a connection may break
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one
ABSENT = "; does data.sources name the shards as they are, and all of them?"


def shard_urls(source: Source) -> list[str]:
    """Return the addresses of a source's shards: braces expanded, or the tars in a bucket's folder."""
    urls = list(expand_urls(source.shards))
    if len(urls) > 1 or urls[0].startswith("pipe:") or urls[0].endswith(".tar"):
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


def samples_in(url: str, problems: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the samples of a tar as webdataset groups them: ``__key__``, and the bytes of each suffix.

    A connection that breaks is made again, and the samples that were given are skipped. A tar that always breaks off
    is counted in ``problems``. Raises UserError if there is no such shard, or it cannot be read.
    """
    position = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with _opened(url) as opened:
                stream = _Whole(opened)
                files = tar_file_expander([{"url": url, "stream": stream}])
                for sample in itertools.islice(group_by_keys(files), position, None):
                    position += 1
                    yield sample
                stream.check_end()
            return
        except Exception as error:
            sentence = explained(url, error, ABSENT)
            if isinstance(error, tarfile.ReadError) and position and attempt == ATTEMPTS:
                problems["shards_truncated"] += 1  # as the index of local shards counts it
                log.warning("%s; what there is of it is used", sentence)
                return
            if isinstance(error, FileNotFoundError | ImportError) or attempt == ATTEMPTS:
                raise sentence from error
            log.warning("%s, after %d samples; trying again", sentence, position)
            time.sleep(PAUSE * 2 ** (attempt - 1))


def _opened(url: str) -> BinaryIO:
    opened = webdataset.gopen(url) if url.startswith("pipe:") else fsspec.open(url, "rb").open()
    return cast("BinaryIO", opened)


class _Whole:
    """A stream that knows whether it was a whole tar, which ends with zeros: ``tarfile`` takes any end for one."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.last = stream, b""

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.last = (self.last + data)[-512:]
        return data

    def check_end(self) -> None:
        """Read the rest. Raises tarfile.ReadError if the tar does not end here."""
        while self.read(1 << 20):
            pass
        if not self.last or self.last.strip(b"\0"):
            raise tarfile.ReadError("the tar breaks off")
