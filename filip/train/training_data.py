"""The data of a training: its manifests and its batches."""

from __future__ import annotations

import math

from filip.common.errors import DamagedFileError, UserError
from filip.data.shard_set import changed_since, damaged_tar
from filip.loading.config import StreamConfig
from filip.loading.loader import PairLoader, build_loader
from filip.loading.pair_index import identity_of, index_source
from filip.loading.stem_maps import cache_folder
from filip.loading.tar_cache import TarCache
from filip.models import DualEncoder
from filip.train.config import AUTO, TrainConfig
from filip.train.engine import MOST_FITTED, Batching
from filip.train.ranks import Ranks, from_main, raise_together

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
    config.gradient_cache = config.gradient_cache and math.gcd(config.gradient_cache, per_rank)
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
    return build_loader(stream, pin_memory=ranks.device.type not in ("cpu", "mps"))


def refuse_changed_data(config: TrainConfig) -> None:
    """Raise UserError if the data of a source no longer match its manifest. Reads every side-car: for one rank only."""
    for source in config.data.sources:
        if source.manifest is None or not (changed := changed_since(source.manifest)):
            continue
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"the data no longer match {source.manifest}: {'; '.join(changed[:3])}{more}. Restore them, or write the "
            "manifest again with python -m filip.data.manifest and start a new run"
        )
