"""Make a downloader and a resizer from a source card."""

from __future__ import annotations

import math
import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filip.data.cards import SourceCard
from filip.data.fetching.access import Access
from filip.data.fetching.image_rules import CheckedResizer
from filip.data.fetching.shards import ShardDownloader


def make_downloader(
    card: SourceCard, folder: Path, columns: list[str], opt_outs: list[str], tars: str | None = None
) -> ShardDownloader:
    """Return a Downloader with a card's settings that writes into ``folder``; it can be pickled to any worker.

    tars: folder of a bucket that takes the tars.
    """
    load = card.download
    return ShardDownloader(
        final_folder=folder,
        access=Access(card.allow_private_hosts, local_root(card)),
        resizer=make_resizer(card),
        columns=columns,
        threads=load.threads,
        timeout=load.timeout,
        retries=load.retries,
        rows_per_shard=load.samples_per_shard,
        encode_format=load.encode_format,
        digits=math.ceil(math.log10(load.samples_per_shard)),
        opt_outs=frozenset(opt_outs),
        verify_sha256=load.verify_sha256,
        tars=tars,
    )


def make_resizer(card: SourceCard) -> CheckedResizer:
    """Return the resizer that checks, resizes and encodes an image as the card says."""
    load = card.download
    return CheckedResizer(
        image_size=load.image_size,
        resize_mode=load.resize_mode,
        only_if_bigger=load.only_if_bigger,
        encode_format=load.encode_format,
        quality=load.quality,
        min_side=card.image_rules.min_side,
        max_aspect=card.image_rules.max_aspect,
    )


def local_root(card: SourceCard) -> str | None:
    """Return the card's image_root if it is a folder of this machine, not a host's; its `file:` URLs may be read."""
    root = card.image_root
    if root is None or root.startswith("file:"):
        return root and url2pathname(urlsplit(root).path)
    return None if "://" in root else os.path.abspath(root)
