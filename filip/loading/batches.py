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
from torch.utils.data import DataLoader, Dataset

from filip.common.errors import UserError
from filip.common.worker_pool import LOADER_START
from filip.loading.config import PREFETCH, StreamConfig
from filip.loading.crops import Crop, pack

Batch = dict[str, Any]


class Pair(NamedTuple):
    """An image (its feature map, or a crop that the device finishes) and a caption, as a batch takes them."""

    image: torch.Tensor | Crop
    text: str
    group: int
    key: str


def batch_of(pairs: Sequence[Pair], problems: Mapping[str, int], config: StreamConfig) -> Batch:
    """Collate a batch; see :func:`build_loader`. ``problems``: faults of samples since the last one."""
    images: list[Any] = [pair.image for pair in pairs]
    ids, lengths = config.tokenizer.tokenize([pair.text for pair in pairs], config.context_length)
    return {
        "pixels": pack(images, config.image_size) if isinstance(images[0], tuple) else torch.stack(images),
        "ids": ids,
        "lengths": lengths,
        "group": torch.tensor([pair.group for pair in pairs], dtype=torch.int64),
        "key": [pair.key for pair in pairs],
        "problems": dict(problems),
    }


def batches_an_epoch(batches: int, pairs: str, config: StreamConfig) -> int:
    """Return ``batches``. Raises UserError if there is not one."""
    if not batches:
        raise UserError(
            f"{pairs} do not fill one global batch of {config.global_batch} "
            f"({config.batch_size} x {config.world_size} ranks): give global_batch=auto, or a smaller number"
        )
    return batches


def in_workers(stream: Dataset[Batch], config: StreamConfig, pin_memory: bool, **options: Any) -> DataLoader[Batch]:
    """Return a loader of a stream's batches, made in ``data.workers`` processes."""
    workers = config.data.workers
    return DataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=LOADER_START if workers else None,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=prepare_worker,
        generator=torch.Generator(),  # otherwise each start would draw from torch's global one
        **options,
    )


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
