"""Plan a training before any of it is allocated: parameters, arithmetic, memory and steps of a fleet.

filip train plan experiment=large gpus=192 gpu=h100 pairs=340e6

Everything follows from the configuration, on the meta device. Tests compare it with the operations that torch counts,
and the memory that autograd and ranks hold. Seconds are in the log of a run on the machine.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from filip.cli.command import option, run_command
from filip.common.errors import UserError
from filip.common.files import readable
from filip.models import DualEncoder, ModelConfig, build_model
from filip.train.config import TrainConfig
from filip.train.engine import Batching, resolve_batching, use_precision
from filip.train.losses import TERMS, BatchShape, Loss, resolve_weights
from filip.train.losses.term import Setting, WeightSchedule, parse_weight, transport_dtype
from filip.train.optimizers import OPTIMIZERS
from filip.train.warm_start import adapt, trainable
from late_interaction.token_selection import kept_count

CAPTION_TOKENS = 18  # mean length of a web caption, [BOS] and [EOS] included

GB, TFLOP = 1e9, 1e12


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, by its data sheet; peaks are of dense products. No time is computed from them."""

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
    products: float = 0.0  # flops of the late interaction, forward and both gradients, nothing padded

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
    batch = contrastive_batch(built, config, batching, ranks, kept_shares(config)[1])
    passes = 3 if config.token_maximum == "hard" else 5  # a smooth maximum multiplies again for each gradient
    products = 2.0 * batch.local * batch.n1 * batch.global_batch * batch.n2 * batch.dim * passes * batching.accumulation
    terms = resolve_weights(config.loss, model.interaction)
    with torch.device("meta"):
        adapt(built, config.warm_start)
    return Counts(
        parts,
        trainable(built),
        step_flops(model, config, batching),
        memory_bytes(built, config, batching, ranks),
        products if any("tokens" in TERMS[name].features for name in terms) else 0.0,
    )


def kept_shares(config: TrainConfig) -> tuple[float, float]:
    """Return the shares of the tokens that the loss sees in the first and in the last step."""
    schedule = parse_weight("token_keep_schedule", config.token_keep_schedule)
    if isinstance(schedule, WeightSchedule):
        return schedule.start, schedule.end
    return config.token_keep_ratio, config.token_keep_ratio


def contrastive_batch(model: DualEncoder, config: TrainConfig, batching: Batching, ranks: int, share: float) -> Setting:
    """Return one contrastive batch, of which ``share`` of the tokens is left."""
    patches = model.config.reduction or model.image.grid[0] * model.image.grid[1]
    words = min(CAPTION_TOKENS, model.config.text.context_length)
    return Setting(
        global_batch=batching.global_batch,
        gpus=ranks,
        n1=kept_count(patches, share, config.token_keep_minimum),
        n2=kept_count(words, share, config.token_keep_minimum),
        dim=model.config.compared_dim,
        token_bytes=4 if transport_dtype(config) is None else 2,
    )


# --- arithmetic


def step_flops(model: ModelConfig, config: TrainConfig, batching: Batching) -> float:
    """Count the operations of both towers in a step of a rank: a backward pass counts as two forward ones."""
    words = min(CAPTION_TOKENS, model.text.context_length)
    of_a_pair = encoder_flops(model, words, config.data.feature_cache is None)
    return 3.0 * of_a_pair * batching.per_rank * batching.accumulation


def encoder_flops(model: ModelConfig, words: int, stem_computes: bool = True) -> int:
    """Let torch count the floating-point operations of a pair's forward pass, on the meta device: two per product.

    words: tokens of its caption. stem_computes: false with data.feature_cache.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where it is installed

    with torch.device("meta"):
        built = build_model(model)
        pixels = torch.zeros(1, 3, built.image_size, built.image_size)
        ids = torch.zeros(1, words, dtype=torch.int64)
        if built.image.stem is not None and not stem_computes:
            pixels = built.image.stem(pixels)
    # it does not know how many flops torch's fused attention for the CPU takes
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        built(pixels, ids, torch.tensor([words]))
    return counter.get_total_flops()


# --- a rank's memory

# Values per token and channel that autograd keeps of one pre-norm block (counted with saved-tensor hooks): both norms'
# and both MLP layers' inputs, q/k/v, the attention's output, the 4-fold hidden layer before and after its activation.
# The text tower's fused q/k/v is copied once more. Then, per tower, the layers before and after the blocks.
IMAGE_BLOCK, TEXT_BLOCK, IMAGE_ENDS, TEXT_ENDS = 16, 20, 4, 3
REDUCE_BUCKET = 50_000_000  # elements; reduce_bucket_size of ds_configs/*.json
# Bytes per value: autocast keeps norms and the residual stream in fp32 and the rest in bf16.
VALUE_BYTES = {"fp32": 4.0, "bf16": 2.4, "fp16": 2.0}


def memory_bytes(model: DualEncoder, config: TrainConfig, batching: Batching, ranks: int) -> dict[str, int]:
    """Return the bytes of a rank by purpose: states, activations and the terms of the loss.

    Terms hold embeddings with their gradients, and what they count themselves.
    """
    moments = OPTIMIZERS[config.optimizer.name].state_bytes
    learning = trainable(model)
    frozen = sum(p.numel() for p in model.parameters()) - learning
    sizes = state_bytes(learning, config.precision, config.sharding, ranks, moments, frozen)
    loss = Loss(resolve_weights(config.loss, model.config.interaction), config)
    captions = 2 if loss.reads_further_captions else 1
    sizes["activations"] = activation_bytes(model, config.precision, batching.chunk, captions)
    whole = contrastive_batch(model, config, batching, ranks, 1.0)
    most = contrastive_batch(model, config, batching, ranks, max(kept_shares(config)))
    shape = BatchShape(batching.per_rank, whole.n1, int(whole.n2), whole.dim, config.exchange, most)
    return sizes | {"loss": loss.memory(shape)}


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


def activation_bytes(model: DualEncoder, precision: str, images: int, captions: int = 1) -> int:
    """Return the bytes that the backward pass needs of both towers for ``images`` images per forward pass.

    Captions count at full length. ``captions``: how many of each image the text tower encodes.

    With gradient checkpointing only each block's input is kept, plus the recomputation of one block. For a tower
    that does not learn only the output is kept, and the working memory of one block. Adapters do not reduce
    this: each needs the input of its layer.
    """
    config = model.config
    rows, columns = model.image.grid
    patch_rows, patch_columns = model.image.patch_size
    tokens = rows * columns + model.image.prefix_tokens
    patches = rows * columns * patch_rows * patch_columns * 3 + stem_values(model)
    image = tokens * model.image.width
    text = captions * config.text.context_length * config.text.width
    towers = (
        (image, model.image.depth, IMAGE_BLOCK, IMAGE_ENDS, model.image.trunk),
        (text, config.text.layers, TEXT_BLOCK, TEXT_ENDS, model.text.blocks),
    )
    values, passing = float(patches), 0
    for width, depth, block, ends, layers in towers:
        learns = any(parameter.requires_grad for parameter in layers.parameters())
        whole = learns and not config.gradient_checkpointing
        passing = passing if whole else max(passing, block * width)
        values += width * (1 if not learns else ends + depth * (block if whole else 1))
    return int(images * (values + passing) * VALUE_BYTES[precision])


def stem_values(model: DualEncoder) -> int:
    """Count the numbers that autograd keeps of a stem that learns, for one image, on the meta device."""
    stem = model.image.stem
    if stem is None or not any(parameter.requires_grad for parameter in stem.parameters()):
        return 0
    stem = copy.deepcopy(stem).to("meta")
    values: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and tensor.shape[0] == 1:  # the image's: every weight has several outputs
            values[tensor.untyped_storage()._cdata] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = stem(torch.zeros(1, 3, model.image_size, model.image_size, device="meta"))
    del output
    return sum(values.values())


# --- the command


@dataclass
class Plan(TrainConfig):
    run_dir: str = option("-", "not used: nothing is written")
    out: str = option("-", "not used")
    result: str = option("-", "not used")
    gpus: int = option(8, "GPUs, a rank on each", at_least=1)
    gpu: str = option("h100", f"kind of GPU, for what fits: {', '.join(GPUS)}", choices=tuple(GPUS))
    gpus_per_node: int = option(8, "GPUs of a node; a fleet has whole nodes, or is a part of one", at_least=1)
    pairs: float | None = option(None, "pairs of an epoch, e.g. 340e6: for the steps of a run", at_least=1)


def main(config: Plan) -> None:
    """A training's parameters, arithmetic, memory and steps on gpus=N; nothing of it is allocated."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # nothing is run: DeepSpeed need not look for a device
    config.check()
    config.model.image.image_size = config.image_size or config.model.image.image_size
    if config.precision == "auto":
        use_precision(config, "bf16" if GPUS[config.gpu].bf16 else "fp16")
    print("\n".join(report(config)))


def report(config: Plan) -> list[str]:
    """Return the lines of the plan. Raise UserError for half a node, a precision without hardware, an odd batch."""
    gpus, gpu = config.gpus, GPUS[config.gpu]
    if gpus > config.gpus_per_node and gpus % config.gpus_per_node:
        raise UserError(f"gpus={gpus} is not a whole number of nodes of gpus_per_node={config.gpus_per_node}")
    if config.precision == "bf16" and not gpu.bf16:
        raise UserError(f"precision=bf16: a {gpu.title} has no bf16; use precision=fp16")
    batch = resolve_batching(config, gpus)
    counts, per_node = count(config.model, config, batch, gpus), config.gpus_per_node
    nodes = -(-gpus // per_node)
    place = f"{min(per_node, gpus)} a node; {f'{nodes} nodes' if nodes > 1 else 'one node'}"
    model, memory = counts.lines()
    fits = "fits" if counts.total < 0.9 * gpu.memory else "DOES NOT FIT"
    several = f", {batch.accumulation} batches per step" if batch.accumulation > 1 else ""
    auto = "triton" if gpu.bf16 else "tiled, since Triton has no tensor-core path before compute capability 8.0"
    backend, share = auto if config.backend == "auto" else config.backend, counts.products / counts.flops
    said = f"{counts.products / 1e12:,.1f} TFLOP a step and GPU, {share:.0%} of the encoders'; backend={backend}"
    loss = [f"loss        {said}"] if counts.products else []
    lines = [
        f"fleet       {gpus} x {gpu.title}, {place}",
        model,
        f"batch       {batch.global_batch} pairs = {batch.per_rank} x {gpus}{several}",
        f"encoders    {counts.flops / 1e12:,.1f} TFLOP a step and GPU, forward and backward",
        *loss,
        f"files       {batch.pairs_per_step:,} reads a step",
        f"{memory} ({fits} in {readable(gpu.memory)})",
    ]
    steps = planned_steps(config, batch)
    unknown = "as many steps as the data give: pairs=N says how many an epoch has"
    return [*lines, f"run         {unknown if steps is None else f'{steps:,} steps'}"]


def planned_steps(config: Plan, batch: Batching) -> int | None:
    """Return the optimiser steps of the run; None if they depend on a number of pairs that is not given."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.epochs is not None:
        if config.pairs is None:
            return None
        limits.append(int(config.epochs * (int(config.pairs) // batch.pairs_per_step)))
    return min(limits)


if __name__ == "__main__":
    run_command(main, Plan, "train")
