"""Predict the memory of a training before any is allocated: a rank's by purpose, and a node's."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch

from filip.files import readable
from filip.interaction.cost import Setting
from filip.models import DualEncoder, ModelConfig, TextTowerConfig, build_model
from filip.train.adapters import adapt, trainable
from filip.train.config import TrainConfig
from filip.train.engine import Batching, resolve_batching
from filip.train.host_memory import node_bytes
from filip.train.losses import BatchShape, Loss, resolve_weights
from filip.train.losses.term import transport_dtype
from filip.train.losses.weights import parse_schedule
from filip.train.optimizers import OPTIMIZERS

# Values per token and channel that autograd keeps of one pre-norm block (counted with saved-tensor hooks): both norms'
# and both MLP layers' inputs, q/k/v, the attention's output, the 4-fold hidden layer before and after its activation.
# The text tower's fused q/k/v is copied once more. Then, per tower, what stands before and after the blocks.
IMAGE_BLOCK, TEXT_BLOCK, IMAGE_ENDS, TEXT_ENDS = 16, 20, 4, 3
REDUCE_BUCKET = 50_000_000  # elements; reduce_bucket_size of ds_configs/*.json
CAPTION_TOKENS = 18  # mean length of a web caption, [BOS] and [EOS] included
# Bytes per value: autocast keeps norms and the residual stream in fp32 and the rest in bf16.
VALUE_BYTES = {"fp32": 4.0, "bf16": 2.4, "fp16": 2.0}


def encoded_tokens(text: TextTowerConfig) -> int:
    """Return the tokens that the text tower computes of a typical caption."""
    return min(CAPTION_TOKENS, text.context_length) if text.padding is None else text.context_length


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per rank by purpose, parameters per part of the model, and how many of them learn, adapters included."""

    parameters: dict[str, int]
    bytes: dict[str, int]
    trainable: int

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def lines(self) -> list[str]:
        """Return the plan as lines for the log."""
        whole = sum(self.parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        needs = ", ".join(f"{name} {readable(size)}" for name, size in self.bytes.items() if size)
        learning = f"; {self.trainable:,} learn" if self.trainable != whole else ""
        return [
            f"model       {whole:,} parameters: {parts}{learning}",
            f"memory      about {readable(self.total)} per rank: {needs}",
        ]


def memory_plan(model: ModelConfig, config: TrainConfig, batching: Batching, world_size: int) -> MemoryPlan:
    """Build the model on the meta device and add up what a step holds at its peak, on one of ``world_size`` ranks."""
    with torch.device("meta"):
        built = build_model(model)
        parts = {
            "image": sum(p.numel() for p in built.image.parameters()),
            "text": sum(p.numel() for p in built.text.parameters()),
            "temperature": built.logit_scale.numel(),
        }
        adapt(built, config.warm_start)
    if config.data.patch_budgets:  # counted as the square with the most patches that an image can have
        most = math.ceil(math.sqrt(max(config.data.patch_budgets)))
        built.image.image_size = most * built.image.patch_size[0]
    averages = config.optimizer.average is not None
    moments = OPTIMIZERS[config.optimizer.name].state_bytes + 4 * averages
    learning = trainable(built)
    frozen = sum(p.numel() for p in built.parameters()) - learning
    sizes = state_bytes(learning, config.precision, config.zero_stage, world_size, moments, frozen)
    loss = Loss(resolve_weights(config.loss, built.config.interaction), config)
    captions = 2 if loss.reads_further_captions else 1
    sizes["activations"] = activation_bytes(built, config.precision, batching.chunk, captions)
    sizes["loss"] = loss_bytes(built, config, batching, world_size)
    return MemoryPlan(parts, sizes, learning)


def state_bytes(
    parameters: int, precision: str, stage: int, world_size: int, moments: int = 8, frozen: int = 0
) -> dict[str, int]:
    """Return weights, gradients and optimiser state of ZeRO's stages (Rajbhandari et al., 2020), bytes per rank.

    fp16 has 2-byte weights and gradients, and 4-byte master weights; fp32 and bf16 (autocast) have 4-byte weights
    and gradients, of which DeepSpeed still keeps a flat master copy. ``moments``: the optimiser's bytes per parameter.
    ``frozen``: the number of parameters that do not learn. They have weights, but no gradients or optimiser states.
    """
    size = 2 if precision == "fp16" else 4
    own = [-(-parameters // world_size) if stage >= first else parameters for first in (1, 2, 3)]
    return {
        "weights": size * (own[2] + (-(-frozen // world_size) if stage == 3 else frozen)),
        "gradients": size * own[1],
        "master weights": 4 * own[0] if stage else 0,
        "moments": moments * own[0],
        "reduction buffer": 4 * min(parameters, REDUCE_BUCKET) if stage else 0,
    }


def activation_bytes(model: DualEncoder, precision: str, images: int, captions: int = 1) -> int:
    """Return the bytes that the backward pass needs of both towers for ``images`` images per forward pass.

    Captions count at full length. ``captions``: how many of each image the text tower encodes.

    With gradient checkpointing only each block's input is kept, plus the recomputation of one block. For a tower
    that does not learn only the output is kept, and what one block holds while it computes. Adapters do not reduce
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
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and tensor.shape[0] == 1:  # the image's: every weight has several outputs
            kept[tensor.untyped_storage()._cdata] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = stem(torch.zeros(1, 3, model.image_size, model.image_size, device="meta"))
    del output
    return sum(kept.values())


def loss_bytes(model: DualEncoder, config: TrainConfig, batching: Batching, world_size: int) -> int:
    """Return the bytes for the terms of the loss.

    These are embeddings with their gradients, and what filip.interaction.cost counts.
    """
    patches = model.image.grid[0] * model.image.grid[1]
    words = min(CAPTION_TOKENS, model.config.text.context_length)
    schedule = parse_schedule("token_keep_schedule", config.token_keep_schedule)
    most = config.token_keep_ratio if schedule is None else max(schedule.start, schedule.end)
    setting = interaction_setting(model, config, batching, world_size, most)
    shape = BatchShape(batching.per_rank, patches, words, model.config.embed_dim, config.exchange, setting)
    return Loss(resolve_weights(config.loss, model.config.interaction), config).memory(shape)


def interaction_setting(
    model: DualEncoder, config: TrainConfig, batching: Batching, world_size: int, kept: float
) -> Setting:
    """Return one contrastive batch of which the share ``kept`` of the tokens is left, for filip.interaction.cost."""
    patches = model.image.grid[0] * model.image.grid[1]
    words = min(CAPTION_TOKENS, model.config.text.context_length)
    return Setting(
        global_batch=batching.global_batch,
        gpus=world_size,
        n1=math.ceil(patches * kept),
        n2=math.ceil(words * kept),
        dim=model.config.embed_dim,
        token_bytes=4 if transport_dtype(config) is None else 2,
    )


def host_memory(config: TrainConfig, world_size: int, ranks: int, pairs: int, gpu: bool = True) -> dict[str, float]:
    """Return the main memory, in bytes by part, of a node with ``ranks`` of the ``world_size`` ranks.

    See filip.train.host_memory.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(config.model).parameters())
    return node_bytes(
        config.data,
        ranks=ranks,
        world_size=world_size,
        batch_per_rank=resolve_batching(config, world_size).per_rank,
        image_size=config.image_size or config.model.image.image_size,
        parameters=parameters,
        pairs=pairs,
        gpu=gpu,
    )
