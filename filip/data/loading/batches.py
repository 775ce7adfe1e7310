"""Make batches in worker processes: what local and streamed shards have in common."""

from __future__ import annotations

import atexit
import gc
import hashlib
import multiprocessing
import signal
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from filip.data.loading.config import StreamConfig
from filip.errors import UserError

Batch = dict[str, Any]


class Pair(NamedTuple):
    """An image (or its feature map) and a caption, as a batch takes them."""

    pixels: torch.Tensor
    text: str
    group: int
    key: str


def batch_of(pairs: Sequence[Pair], problems: Mapping[str, int], config: StreamConfig) -> Batch:
    """Collate a batch; see :func:`build_loader`. ``problems``: faults of samples since the last one."""
    ids, lengths = config.tokenizer.tokenize([pair.text for pair in pairs], config.context_length)
    return {
        **_images([pair.pixels for pair in pairs], config.patch_size),
        "ids": ids,
        "lengths": lengths,
        "group": torch.tensor([pair.group for pair in pairs], dtype=torch.int64),
        "key": [pair.key for pair in pairs],
        "problems": dict(problems),
    }


def _images(images: list[torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """Return ``pixels`` [b, 3, S, S]; with a size of patches, images [3, H, W] of any shape as ``patches_of`` them."""
    if not patch:
        return {"pixels": torch.stack(images)}
    grids = torch.tensor([[image.shape[1] // patch, image.shape[2] // patch] for image in images])
    return {"pixels": pad_sequence([patches_of(image, patch) for image in images], batch_first=True), "grids": grids}


def patches_of(image: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut [3, H, W] into patches, row by row: [rows * columns, patch * patch * 3], the colours last."""
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    cut = image.reshape(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)
    return cut.reshape(rows * columns, patch * patch * 3)


def sentence_of(error: UserError) -> str:
    """Return the sentence of a worker's UserError, before which torch puts a traceback.

    torch keeps the error in a reference cycle, and with it the iterator and its workers, which could not end.
    """
    traceback.clear_frames(error.__traceback__)
    return str(error).rsplit("UserError: ", 1)[-1].strip()


def prepare_worker(_: int) -> None:
    """Prepare a worker: ignore signals, and share the memory of the training process for as long as possible.

    Schedulers signal every process of a job. A worker that died of SIGTERM would end the training before its save.

    A worker starts with its parent's pages, and gets a copy of each page that it writes to.
    A full garbage collection writes to every page with Python objects, some 75 MB; it leaves frozen objects out.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()


@atexit.register  # registered after multiprocessing's handler, so it runs before that
def _end_workers() -> None:
    """Kill the workers: at exit multiprocessing sends its daemons SIGTERM, which they ignore, and waits for ever."""
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def hash_of(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")
