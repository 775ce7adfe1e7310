"""The data of a training: its manifests, its batches, and the feature maps of a frozen stem (data.feature_cache)."""

from __future__ import annotations

import math
import os
import random
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from filip.common import device
from filip.common.errors import DamagedFileError, UserError
from filip.common.files import claimed, locked
from filip.common.progress import Progress
from filip.data.shard_set import changed_since, damaged_tar
from filip.images.eval_transform import normalize_planes
from filip.images.rgb import UNDECODABLE
from filip.loading.config import StreamConfig
from filip.loading.feature_maps import map_path, write_maps
from filip.loading.loader import PairLoader, PairStream, build_loader, patiently
from filip.loading.pair_index import identity_of, index_source
from filip.loading.tar_cache import TarCache
from filip.models import DualEncoder
from filip.models.stem import Stem
from filip.train.config import AUTO, TrainConfig
from filip.train.engine import MOST_FITTED, Batching, fitting_chunk
from filip.train.ranks import Ranks, from_main, raise_together

if TYPE_CHECKING:
    from filip.train.ranks import StopSignal


FEWEST_STEPS = 300  # of a training on few pairs,
MOST_PASSES = 40  # unless they are more passes over them


def fit_to_pairs(config: TrainConfig, ranks: Ranks) -> str:
    """Replace ``global_batch=auto`` by a number that fits the pairs, and fit the steps and the warm-up with it.

    The batch is an eighth of the pairs, rounded down to a power of two. Returns a sentence for the log, or "". Raises
    UserError if there are fewer pairs than a batch of two for each rank takes.
    """
    if config.global_batch != AUTO:
        return ""
    sources, cache = config.data.sources, TarCache.of(config.data)
    counts = [len(index_source(source, cache)) for source in sources]
    pairs = math.floor(sum(source.weight * count for source, count in zip(sources, counts, strict=True)))
    least = 2 * ranks.world_size
    if pairs < least:
        raise UserError(f"{pairs} pairs are too few for {ranks.world_size} ranks: a batch takes {least} at least")
    per_rank = max(2, min(MOST_FITTED, pairs // 8) // ranks.world_size)
    per_rank = 1 << (per_rank.bit_length() - 1)
    config.global_batch = batch = per_rank * ranks.world_size
    config.gradient_cache = fitting_chunk(config, per_rank) if config.gradient_cache else None
    config.data.reader_groups = math.gcd(config.data.reader_groups, batch)
    a_pass = max(1, pairs // (batch * config.gradient_accumulation))
    steps = max(math.floor((config.epochs or 0) * a_pass), min(FEWEST_STEPS, MOST_PASSES * a_pass))
    config.max_steps, config.epochs = min(config.max_steps or steps, steps), None
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.max_steps // 10)
    config.log_every = min(config.log_every, max(1, config.max_steps // 20))
    return (
        f"global_batch=auto: {pairs:,} pairs, so batches of {batch}, {config.max_steps:,} steps "
        f"({config.max_steps * batch / pairs:.3g} passes) and {config.optimizer.warmup_steps} of warm-up; give "
        "global_batch=, max_steps= and optimizer.warmup_steps= for others"
    )


def training_loader(config: TrainConfig, model: DualEncoder, batching: Batching, ranks: Ranks) -> PairLoader:
    """Return this rank's stream of contrastive batches. Raises UserError if the model cannot take them."""
    data = config.data
    model.tokenizer.prepare()
    identities: tuple[tuple[str, str], ...] = ()
    with raise_together(ranks):  # the first rank alone asks a file system that all share about each file
        if ranks.is_main:
            for source in data.sources:
                if source.manifest is not None and (fault := damaged_tar(source.manifest)):
                    raise DamagedFileError(fault)
            cache = TarCache.of(data)
            identities = tuple(identity_of(cache.local_source(source)) for source in data.sources)
    stream = StreamConfig(
        data,
        batch_size=batching.per_rank,
        image_size=model.image_size,
        context_length=model.config.text.context_length,
        json_tokenizer=model.json_tokenizer,
        seed=config.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        feature_maps=cache_folder(config.data.feature_cache, model, config.precision),
        identities=from_main(ranks, identities),
    )
    return build_loader(stream, pin_memory=device.pins_memory(ranks.device))


def refuse_changed_data(config: TrainConfig) -> None:
    """Raise UserError if the data of a source no longer match its manifest.

    This reads every side-car: call it on one rank only.
    """
    for source in config.data.sources:
        if source.manifest is None or not (changed := changed_since(source.manifest)):
            continue
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"the data no longer match {source.manifest}: {'; '.join(changed[:3])}{more}. Restore them, or write the "
            "manifest again with python -m filip.data.manifest and start a new run"
        )


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


def fill(stream: PairStream, model: DualEncoder, precision: str, device: torch.device, stop: StopSignal | None) -> None:
    """Make the missing maps that ``stream`` reads, together with all others that want them; stop at a signal.

    Raises UserError if they cannot be written; finished maps stay.
    """
    folder, stem = stream.config.feature_maps, model.image.stem
    if folder is None:
        return
    assert stem is not None
    stem = stem.folded().to(device)
    shards = [(source, n) for source, index in enumerate(stream.indices) for n in range(len(index.tars))]
    paths = {shard: map_path(folder, stream.indices[shard[0]], shard[1]) for shard in shards}
    images = {shard: int(stream.indices[shard[0]].counts[shard[1]]) for shard in shards}
    missing = [shard for shard in shards if not paths[shard].exists()]
    done: set[tuple[int, int]] = set()
    try:
        total, is_main = sum(images[shard] for shard in missing), stream.config.rank == 0
        with Progress("feature maps", "images", total, shown=is_main) as progress:
            for hold in (
                claimed,
                locked,
            ):  # first the maps that nobody is making, then other ranks' maps, since a rank may have been killed
                for shard in [shard for shard in missing if shard not in done]:
                    with hold(paths[shard].with_suffix(".lock")) as mine:
                        if mine is False:
                            continue
                        if paths[shard].exists():
                            progress.add(images[shard])
                        else:
                            write_maps(paths[shard], _maps(stream, shard, stem, precision, device, stop, progress))
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
    stop: StopSignal | None,
    progress: Progress,
) -> np.ndarray:
    """Return the maps of a shard, float16 [images, channels, rows, columns]."""
    index, number = stream.indices[shard[0]], shard[1]
    samples = range(int(index.starts[number]), int(index.starts[number] + index.counts[number]))
    side = stream.transform.image_size
    found: list[Tensor] = []
    with open(stream.cache.open(index.tars[number]), "rb") as tar:
        for first in range(samples.start, samples.stop, _IMAGES):
            if stop is not None and stop.received is not None:
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
