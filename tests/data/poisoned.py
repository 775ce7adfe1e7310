"""A downloader whose worker dies of one shard, a decoder that dies of one image: for worker processes to import."""

import io
import os
from typing import Any

from filip.data.fetching.shards import ShardDownloader

POISON = 1
DEADLY = b"an image that no decoder survives"


class Poisoned(ShardDownloader):
    def download_shard(self, row: tuple[int, str]) -> None:
        if row[0] == POISON:
            os._exit(9)
        super().download_shard(row)


class Deadly:
    def __call__(self, stream: io.BytesIO) -> Any:
        if stream.getvalue() == DEADLY:
            os._exit(9)
