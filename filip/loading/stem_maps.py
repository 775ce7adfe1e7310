"""Make the feature maps of a frozen stem for every image of a training (data.feature_cache), shard by shard.

Each image passes through it once, and not once an epoch. One file a shard, ``<name of the tar>-<state>.npy``: float16
``[images, channels, rows, columns]``, an image for each usable sample in the order of the index. The state is the tar's
and its used part's, so that the file of a shard that has changed is never read; the folder is one for each network and
image size. An image that could not be decoded has NaN everywhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filip.common.errors import UserError
from filip.common.files import claimed, locked, replacing
from filip.common.progress import Progress
from filip.images.eval_transform import normalize_planes
from filip.images.rgb import UNDECODABLE
from filip.loading.loader import PairStream, patiently
from filip.models import DualEncoder
from filip.models.stem import Stem

_IMAGES = 64  # at a time; a signal is noticed in between


class _Stopped(Exception):
    """A signal that came while a shard was at work."""


def cache_folder(feature_cache: str | None, model: DualEncoder, precision: str) -> Path | None:
    """Return the folder for the maps of exactly this network at this image size.

    Raises UserError if nothing about them is frozen.
    """
    if feature_cache is None:
        return None
    stem = model.image.stem
    if stem is None or any(parameter.requires_grad for parameter in stem.parameters()):
        reason = "there is none" if stem is None else "it learns"
        raise UserError(
            f"data.feature_cache={feature_cache} keeps what a frozen model.image.stem computes, and {reason}; give "
            "model.image.stem=…, init_from=timm:… and warm_start.image=frozen_stem, or leave data.feature_cache out"
        )
    config = model.config.image
    name = f"{config.stem}-{config.stem_stride}-{model.image_size}px-{precision}-{stem.fingerprint()}"
    return Path(feature_cache) / name


def fill(
    stream: PairStream, model: DualEncoder, precision: str, device: torch.device, stopped: Callable[[], bool]
) -> None:
    """Make the missing maps that ``stream`` reads, together with all others that want them, until ``stopped``.

    Raises UserError if they cannot be written; finished maps stay.
    """
    folder, stem = stream.config.feature_maps, model.image.stem
    if folder is None:
        return
    assert stem is not None
    stem = stem.folded().to(device)
    shards = [(source, n) for source, index in enumerate(stream.indices) for n in range(len(index.tars))]
    paths = {shard: stream.indices[shard[0]].map_path(folder, shard[1]) for shard in shards}
    images = {shard: int(stream.indices[shard[0]].counts[shard[1]]) for shard in shards}
    missing = [shard for shard in shards if not paths[shard].exists()]
    done: set[tuple[int, int]] = set()
    try:
        total, is_main = sum(images[shard] for shard in missing), stream.config.rank == 0
        with Progress("feature maps", "images", total, shown=is_main) as progress:
            # first the maps that nobody is making, then other ranks' maps, since a rank may have been killed
            for hold in (claimed, locked):
                for shard in [shard for shard in missing if shard not in done]:
                    with hold(paths[shard].with_suffix(".lock")) as mine:
                        if mine is False:
                            continue
                        if paths[shard].exists():
                            progress.add(images[shard])
                        else:
                            maps = _maps(stream, shard, stem, precision, device, stopped, progress)
                            with replacing(paths[shard]) as part, open(part, "wb") as file:
                                np.save(file, maps)
                        done.add(shard)
    except _Stopped:
        return
    except OSError as error:
        raise UserError(
            f"cannot write feature maps below {folder}: {error.strerror or error}; is the disk full, or the folder "
            "read-only? Make room or give another data.feature_cache, and start again: finished files are kept"
        ) from error


@torch.no_grad()
def _maps(
    stream: PairStream,
    shard: tuple[int, int],
    stem: Stem,
    precision: str,
    device: torch.device,
    stopped: Callable[[], bool],
    progress: Progress,
) -> np.ndarray:
    """Return the maps of a shard, float16 [images, channels, rows, columns]."""
    index, number = stream.indices[shard[0]], shard[1]
    samples = range(int(index.starts[number]), int(index.starts[number] + index.counts[number]))
    side = stream.transform.image_size
    found: list[Tensor] = []
    with open(stream.cache.open(index.tars[number]), "rb") as tar:
        for first in range(samples.start, samples.stop, _IMAGES):
            if stopped():
                raise _Stopped
            chunk = samples[first - samples.start : first - samples.start + _IMAGES]
            pixels = torch.zeros(len(chunk), 3, side, side, dtype=torch.uint8)
            broken = torch.zeros(len(chunk), dtype=torch.bool)
            for i, sample in enumerate(chunk):
                size, offset = int(index.size[sample]), int(index.offset[sample])
                data = patiently(partial(os.pread, tar.fileno(), size, offset), index.tars[number])
                try:
                    image = stream.transform.pixels(data, random.Random(sample))
                    pixels[i] = torch.from_numpy(image).permute(2, 0, 1)
                except UNDECODABLE:
                    broken[i] = True
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                maps = stem(normalize_planes(pixels.to(device))).to("cpu", torch.float16)
            if maps.isinf().any():
                raise UserError(
                    f"the feature maps of {stream.config.feature_maps} exceed 65,504, the largest number of float16: "
                    "this stem cannot be cached, leave data.feature_cache out"
                )
            maps[broken] = torch.nan
            found.append(maps)
            progress.add(len(chunk))
    return torch.cat(found).numpy() if found else np.zeros((0, 0, 0, 0), np.float16)
