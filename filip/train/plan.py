"""How much memory a training takes per rank, term by term, before any of it is allocated.

python -m filip.train.plan experiment=large ranks=[8,128,192]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from filip.models import ModelConfig, build_model
from filip.train.config import TrainConfig
from filip.train.engine import Batching


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per rank by purpose, and parameters per part of the model."""

    parameters: dict[str, int]
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.bytes.values())

    def lines(self) -> list[str]:
        """For the log."""
        whole = sum(self.parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items())
        needs = ", ".join(f"{name} {_readable(size)}" for name, size in self.bytes.items())
        return [
            f"model       {whole:,} parameters: {parts}",
            f"memory      about {_readable(self.total)} per rank: {needs}",
        ]


def memory_plan(model: ModelConfig, config: TrainConfig, batching: Batching, world_size: int) -> MemoryPlan:
    """Count parameters on the meta device and add up what a step holds at its peak."""
    with torch.device("meta"):
        built = build_model(model)
    parts = {
        "image": sum(p.numel() for p in built.image.parameters()),
        "text": sum(p.numel() for p in built.text.parameters()),
        "temperature": built.logit_scale.numel(),
    }
    count = sum(parts.values())
    tokens = built.image.grid[0] * built.image.grid[1]
    sizes = state_bytes(count, config.precision, config.zero_stage, world_size)
    sizes["activations"] = activation_bytes(
        model,
        built.image.trunk.embed_dim,
        len(built.image.trunk.blocks),
        tokens,
        config.precision,
        batching.chunk,
    )
    sizes["loss"] = loss_bytes(model, tokens, config, batching)
    return MemoryPlan(parts, sizes)


def state_bytes(parameters: int, precision: str, stage: int, world_size: int) -> dict[str, int]:
    """Weights, gradients and optimiser state of ZeRO's stages (Rajbhandari et al., 2020), bytes per rank.

    fp16 keeps 2-byte weights and gradients and fp32 master weights; fp32 and bf16 autocast keep 4-byte weights,
    of which ZeRO makes a flat 4-byte copy of its own share. LAMB and AdamW keep two moments.
    """
    half = precision == "fp16"
    size = 2 if half else 4
    share = [world_size if stage >= s else 1 for s in (1, 2, 3)]
    master = 4 * parameters // share[0] if stage >= 1 else 0
    return {
        "weights": size * parameters // share[2],
        "gradients": size * parameters // share[1],
        "master weights": 0 if stage == 3 and not half else master,
        "moments": 8 * parameters // share[0],
    }


def activation_bytes(
    model: ModelConfig, width: int, layers: int, patches: int, precision: str, pairs: int
) -> int:
    """Activations that the backward pass needs, both towers, for ``pairs`` pairs per forward pass.

    A pre-norm block keeps per token about 17 values of its width in compute precision (inputs of two norms, of
    q/k/v, of the projection and of both MLP layers, and the MLP's 4-fold hidden twice); with checkpointing only the
    block's input is kept, plus one block's recomputation.
    """
    size = 4 if precision == "fp32" else 2
    total = 0
    for tokens, channels, depth in (
        (patches + 1, width, layers),
        (model.text.context_length, model.text.width, model.text.layers),
    ):
        block = 17 * tokens * channels * size
        kept = depth * tokens * channels * size + block if model.gradient_checkpointing else depth * block
        total += pairs * kept
    return total


def loss_bytes(model: ModelConfig, patches: int, config: TrainConfig, batching: Batching) -> int:
    """Embeddings of this rank and of all ranks, their gradients, and the similarity matrices."""
    wire = {"fp32": 4, "bf16": 2, "fp16": 2}[config.precision]
    n, b = batching.global_batch, batching.per_rank
    matrices = 2 * b * n * 4 * 3  # both directions: similarity, logits, gradient
    if model.interaction == "global":
        return matrices + (b + n) * 2 * model.embed_dim * 4
    words, share = model.text.context_length, config.token_share
    own = b * (patches + words) * model.embed_dim * 4 * 2
    gathered = n * share * words * model.embed_dim * wire * 2
    return int(matrices + own + gathered)


def _readable(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
