"""Count what one training step computes and sends, from the configuration: flops of the encoders, and collectives.

The tests compare the flops with those that torch counts, and the bytes with those that ranks put on the wire.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from filip.interaction.cost import Setting, block_flops
from filip.models import DualEncoder
from filip.models.stem import Stem
from filip.train.config import TrainConfig


def encoder_flops(model: DualEncoder, words: float, columns: int, stem_computes: bool = True) -> dict[str, float]:
    """Count the floating-point operations of one pair's forward pass, by tower: two per product.

    words: tokens of its caption, which all linear layers compute with. columns: tokens of the longest caption of the
    batch, to which the attention alone is padded. stem_computes: false with data.feature_cache.
    """
    config = model.config
    rows, width, depth = model.image.grid[0] * model.image.grid[1], model.image.width, model.image.depth
    patch_rows, patch_columns = model.image.patch_size
    tokens = rows + model.image.prefix_tokens
    first: Any = model.image.trunk.blocks[0]
    layers = [layer for layer in first.mlp.modules() if isinstance(layer, torch.nn.Linear)]
    mlp = sum(layer.in_features * layer.out_features for layer in layers)
    stem = model.image.stem
    image = 2.0 * rows * patch_rows * patch_columns * 3 * width
    if stem is not None:  # a convolution of one px makes its cells wide enough
        image = 2.0 * rows * stem.num_features * width
        if stem_computes:
            image += stem_flops(stem, model.image_size)
    image += depth * block_flops(tokens, tokens, width, mlp) + 2 * tokens * width * config.embed_dim
    text_width = config.text.width
    text_mlp = 2 * text_width * (config.text.mlp_width or 4 * text_width)
    text = float(config.text.layers) * block_flops(words, columns, text_width, text_mlp)
    text += 2 * (words if config.interaction == "token_wise" else 1) * text_width * config.embed_dim
    return {"image": image, "text": text}


def stem_flops(stem: Stem, image_size: int) -> float:
    """Count the floating-point operations of one image's forward pass, on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where it is installed

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(stem).to("meta")(torch.zeros(1, 3, image_size, image_size, device="meta"))
    return float(counter.get_total_flops())


def passes(checkpointing: bool, chunks: int) -> int:
    """Return how many forward passes a step's arithmetic amounts to.

    A backward pass is two, recomputing is one more. ``chunks`` above 1 is gradient caching, which first encodes without
    gradients.
    """
    return 3 + checkpointing + (chunks > 1)


@dataclass(frozen=True)
class Message:
    """One collective, or a ring of point-to-point messages.

    part   of the step that it belongs to: "exchange" or "gradients"
    kind   all_gather, reduce_scatter, all_reduce, all_to_all or ring
    size   bytes of the whole: what all ranks together hold (all_gather, reduce_scatter, ring), or one rank's buffer
           (all_reduce, all_to_all)
    times  in a step
    """

    part: str
    kind: str
    size: float
    times: int = 1

    def received(self, ranks: int) -> float:
        """Return the bytes that each rank receives in a step, which is also what it sends."""
        share = {"all_reduce": 2.0, "ring_and_back": ranks / max(1, ranks - 1)}.get(self.kind, 1.0)
        return self.times * share * self.size * (ranks - 1) / ranks


def loss_messages(setting: Setting, exchanged: set[str], exchange: str, dim: int, times: int) -> list[Message]:
    """List what the terms of the loss exchange ("tokens", "vectors"), ``times`` contrastive batches a step."""
    texts = setting.global_batch * setting.n2 * setting.dim
    vectors = setting.global_batch * dim * 4
    scores = 4 * setting.local * setting.global_batch
    found = []
    if "tokens" in exchanged:
        if exchange == "gather":
            found.append(Message("exchange", "all_gather", texts * setting.token_bytes, times))
            found.append(Message("exchange", "reduce_scatter", texts * 4, times))
        else:  # the tokens go round in the forward and in the backward; their gradients once, and back to their owner
            found.append(Message("exchange", "ring", texts * setting.token_bytes, 2 * times))
            found.append(Message("exchange", "ring_and_back", texts * 4, times))
        found.append(Message("exchange", "all_to_all", scores, 2 * times))
    if "vectors" in exchanged:
        found.append(Message("exchange", "all_gather", vectors, times))
        found.append(Message("exchange", "reduce_scatter", vectors, times))
        found.append(Message("exchange", "all_to_all", scores, 2 * times))
    return found


def zero_messages(parameters: int, config: TrainConfig, micro_steps: int) -> list[Message]:
    """List the messages of DeepSpeed's ZeRO stages as it sends them (0.19).

    Stages 1 and 2 reduce whole buckets on every rank. Gradients travel in float32 whatever the precision.
    """
    held = parameters * (2 if config.precision == "fp16" else 4)
    size = parameters * 4
    weights = Message("gradients", "all_gather", held)
    return {
        0: [Message("gradients", "all_reduce", size)],
        1: [Message("gradients", "all_reduce", size), weights],
        2: [Message("gradients", "all_reduce", size, micro_steps), weights],
        3: [
            Message("gradients", "reduce_scatter", size, micro_steps),
            Message("gradients", "all_gather", held, micro_steps),
        ],
    }[config.zero_stage]
