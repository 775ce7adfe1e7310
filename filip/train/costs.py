"""Count the parameters, the arithmetic and the memory of a training's step before any of it is allocated.

Everything follows from the configuration, on the meta device. Tests compare it with the operations that torch counts,
and the memory that autograd and ranks hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from filip.common.files import readable
from filip.models import DualEncoder, ModelConfig, build_model
from filip.models.costs import activation_bytes, encoder_flops
from filip.train.config import TrainConfig
from filip.train.engine import Batching
from filip.train.losses import TERMS, Loss, resolve_weights
from filip.train.losses.similarity import saved_bytes, transport_dtype
from filip.train.losses.term import BatchShape, WeightSchedule, parse_weight
from filip.train.optimizers import OPTIMIZERS
from filip.train.warm_start import adapt, trainable
from late_interaction.token_selection import kept_count

CAPTION_TOKENS = 18  # mean length of a web caption, [BOS] and [EOS] included

GB, TFLOP = 1e9, 1e12


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its data sheet; peaks are of dense products."""

    title: str
    half: float  # flop/s of dense 16-bit products
    single: float  # flop/s of float32 products, as torch multiplies by default (no TF32)
    memory: float  # bytes
    bf16: bool  # multiplies bfloat16 (compute capability 8.0)
    matches: str  # in the name that the driver reports


# NVIDIA's data sheets of the SXM modules, as the tables of Lightning (fabric/utilities/throughput.py) and Composer
# (callbacks/speed_monitor.py) quote them, which agree. From the H100 on they state 16-bit peaks with sparsity: half.
GPUS = {
    "v100": Gpu("V100 SXM2 32 GB", 125 * TFLOP, 15.7 * TFLOP, 32 * GB, False, "V100"),
    "a100": Gpu("A100 SXM 80 GB", 312 * TFLOP, 19.5 * TFLOP, 80 * GB, True, "A100"),
    "h100": Gpu("H100 SXM", 989.5 * TFLOP, 67 * TFLOP, 80 * GB, True, "H100"),
    "h200": Gpu("H200 SXM", 989.5 * TFLOP, 67 * TFLOP, 141 * GB, True, "H200"),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Return a device's peak in flop/s, by the name that its driver reports; None without a data sheet above."""
    for gpu in GPUS.values():
        if gpu.matches in device_name and "PCIe" not in device_name and "NVL" not in device_name:
            return gpu.single if precision == "fp32" else gpu.half
    return None


@dataclass(frozen=True)
class Counts:
    """The costs of an optimiser step for one rank, as :func:`count` returns them."""

    parameters: dict[str, int]  # by part of the model, without adapters
    trainable: int  # parameters that learn, adapters included
    flops: float  # of both towers, forward and backward, without recomputation
    memory: dict[str, int]  # bytes at the peak by purpose
    interaction: tuple[float, float]  # flops of the loss's products in the first and in the last step
    all_tokens: float  # the same with all tokens

    @property
    def total(self) -> int:
        """Return the bytes of memory at the peak."""
        return sum(self.memory.values())

    def lines(self) -> list[str]:
        """Return the model and its memory as lines for the log."""
        whole = sum(self.parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        learning = f"; {self.trainable:,} learn" if self.trainable != whole else ""
        memory = ", ".join(f"{name} {readable(size)}" for name, size in self.memory.items() if size)
        return [
            f"model       {whole:,} parameters: {parts}{learning}",
            f"memory      about {readable(self.total)} per rank: {memory}",
        ]


def count(model: ModelConfig, config: TrainConfig, batching: Batching, ranks: int) -> Counts:
    """Build ``model`` on the meta device and count a step of one of ``ranks`` ranks."""
    with torch.device("meta"):
        built = build_model(model)
    parts = {
        "image": sum(p.numel() for part in (built.image, built.reduction) if part for p in part.parameters()),
        "text": sum(p.numel() for p in built.text.parameters()),
        "temperature": built.logit_scale.numel(),
    }
    first, last, whole = (interaction_flops(built, config, batching, n) for n in (*kept_shares(config), 1.0))
    with torch.device("meta"):
        adapt(built, config.warm_start)
    return Counts(
        parts,
        trainable(built),
        step_flops(model, config, batching),
        memory_bytes(built, config, batching, ranks),
        (first, last),
        whole,
    )


def kept_shares(config: TrainConfig) -> tuple[float, float]:
    """Return the shares of the tokens that the loss sees in the first and in the last step."""
    schedule = parse_weight("token_keep_schedule", config.token_keep_schedule)
    if isinstance(schedule, WeightSchedule):
        return schedule.start, schedule.end
    return config.token_keep_ratio, config.token_keep_ratio


def batch_shape(model: DualEncoder, config: TrainConfig, batching: Batching, share: float) -> BatchShape:
    """Return the sizes of a contrastive batch, of which ``share`` of the tokens is left for the interaction."""
    patches = model.config.reduction or model.image.grid[0] * model.image.grid[1]
    words = min(CAPTION_TOKENS, model.config.text.context_length)
    held = batching.per_rank / batching.global_batch if config.recompute else 1.0  # a block of the ring at a time
    return BatchShape(
        pairs=batching.per_rank,
        all_pairs=batching.global_batch,
        patches=patches,
        words=words,
        kept_patches=kept_count(patches, share, config.token_keep_minimum),
        kept_words=kept_count(words, share, config.token_keep_minimum),
        dim=model.config.compared_dim,
        exchange=config.exchange,
        token_bytes=4 if transport_dtype(config) is None else 2,
        saved_bytes=held * saved_bytes(config, max(patches, model.config.text.context_length)),
    )


# --- arithmetic


def step_flops(model: ModelConfig, config: TrainConfig, batching: Batching) -> float:
    """Count the operations of both towers in a step of a rank: a backward pass counts as two forward ones."""
    words = min(CAPTION_TOKENS, model.text.context_length)
    of_a_pair = encoder_flops(model, words, config.data.feature_cache is None)
    return 3.0 * of_a_pair * batching.per_rank * batching.accumulation


def interaction_flops(model: DualEncoder, config: TrainConfig, batching: Batching, share: float) -> float:
    """Count the loss's products of a step of a rank that keeps ``share`` of the tokens; 0 if no term compares tokens.

    A forward and a gradient for each side, of nothing padded; the smooth maximum multiplies again for each gradient.
    """
    if not any("tokens" in TERMS[name].features for name in resolve_weights(config.loss, model.config.interaction)):
        return 0.0
    batch, products = batch_shape(model, config, batching, share), 3 if config.token_maximum == "hard" else 5
    products += config.recompute
    scores = batch.pairs * batch.kept_patches * batch.all_pairs * batch.kept_words
    return 2.0 * products * scores * batch.dim * batching.accumulation


# --- a rank's memory

REDUCE_BUCKET = 50_000_000  # elements; reduce_bucket_size of ds_configs/*.json


def memory_bytes(model: DualEncoder, config: TrainConfig, batching: Batching, ranks: int) -> dict[str, int]:
    """Return the bytes of a rank by purpose: states, activations and the terms of the loss.

    Terms hold embeddings with their gradients, and what they count themselves.
    """
    moments = OPTIMIZERS[config.optimizer.name].state_bytes
    learning = trainable(model)
    frozen = sum(p.numel() for p in model.parameters()) - learning
    sizes = state_bytes(learning, config.precision, config.sharding, ranks, moments, frozen)
    loss = Loss(resolve_weights(config.loss, model.config.interaction), config)
    captions = 1 if loss.captions is None else 2
    sizes["activations"] = activation_bytes(model, config.precision, batching.chunk, captions)
    shape = batch_shape(model, config, batching, max(kept_shares(config)))
    return sizes | {"loss": int(sum(TERMS[name].memory(shape) for name in loss.weights))}


def state_bytes(
    parameters: int, precision: str, stage: int, world_size: int, moments: int = 8, frozen: int = 0
) -> dict[str, int]:
    """Return weights, gradients and optimiser state of ZeRO's stages (Rajbhandari et al., 2020), bytes per rank.

    fp16 has 2-byte weights and gradients, and 4-byte master weights; fp32 and bf16 (autocast) have 4-byte weights
    and gradients, of which DeepSpeed still keeps a flat master copy. ``moments``: the optimiser's bytes per parameter.
    ``frozen``: the number of parameters that do not learn. They have weights, but no gradients or optimiser states.
    """
    size = 2 if precision == "fp16" else 4
    shares = [-(-parameters // world_size) if stage >= first else parameters for first in (1, 2, 3)]
    return {
        "weights": size * (shares[2] + (-(-frozen // world_size) if stage == 3 else frozen)),
        "gradients": size * shares[1],
        "master weights": 4 * shares[0] if stage else 0,
        "moments": moments * shares[0],
        "reduction buffer": 4 * min(parameters, REDUCE_BUCKET) if stage else 0,
    }
