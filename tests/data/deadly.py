"""What kills its worker: certain images, one shard; in a module that worker processes can import."""

import io
import os
from typing import Any

from filip.data.fetching.image_rules import CheckedResizer
from filip.data.fetching.workers import ShardDownloader
from tests.data import hostile


class DeadlyResizer(CheckedResizer):
    def __call__(self, img_stream: io.BytesIO) -> tuple[Any, ...]:
        if img_stream.getvalue() in (hostile.GOOD["jpeg"](), hostile.GOOD["webp"]()):
            os._exit(9)
        return super().__call__(img_stream)


POISON = 1


class Poisoned(ShardDownloader):
    def download_shard(self, row: tuple[int, str]) -> None:
        if row[0] == POISON:
            os._exit(9)
        super().download_shard(row)
