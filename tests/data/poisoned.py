"""A downloader whose worker dies of one shard, in a module that worker processes can import."""

import os

from filip.data.fetching.shards import ShardDownloader

POISON = 1


class Poisoned(ShardDownloader):
    def download_shard(self, row: tuple[int, str]) -> None:
        if row[0] == POISON:
            os._exit(9)
        super().download_shard(row)
