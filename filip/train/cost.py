"""Count, without measuring, what the loss costs per GPU and step: flops, memory and traffic.

The terms of the loss plan their memory with it. ``python -m bench.loss_cost`` compares its forms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from filip.option import option


@dataclass
class Setting:
    """A training step as one GPU sees it. Defaults: the paper's FILIP base."""

    global_batch: int = option(40_960, "pairs of one contrastive batch, all GPUs", at_least=1)
    gpus: int = option(128, "GPUs that share the batch", at_least=1)
    n1: int = option(49, "image tokens in the interaction", at_least=1)
    n2: float = option(18.0, "mean tokens of a caption, [BOS] and [EOS] included", at_least=1)
    n2_padded: int = option(77, "tokens of a caption that a padded implementation computes with", at_least=1)
    dim: int = option(256, "features of a token", at_least=1)
    token_bytes: int = option(2, "bytes of a feature when it is sent; 2 = fp16, as in the paper", at_least=1)
    tile_bytes: int = option(1 << 28, "bytes of the similarity that the tiled backend holds on a GPU", at_least=1)

    @property
    def local(self) -> int:
        return self.global_batch // self.gpus


class Cost(NamedTuple):
    """The cost of one step on one GPU, forward and backward."""

    flops: float
    memory: float  # bytes in addition to the rank's tokens and their gradients
    traffic: float  # bytes received from other GPUs


def block_flops(tokens: float, columns: float, width: int, mlp: int) -> float:
    """Count a transformer block's forward pass for one sequence: two flops per product.

    Every token meets the attention's four matrices and the ``mlp`` weights of the MLP; scores and sums are computed
    over ``columns``, the length to which the attention alone is padded.
    """
    return tokens * 2 * (4 * width * width + mlp) + 4 * columns * columns * width


# Of a pair of an own image and a text: s^I, s^T and, measured, the 6.4 float32 matrices of the soft-max with ids at its
# peak, their gradients among them (4.2 without ids)
SOFTMAX_BYTES = 34


def clip(s: Setting) -> Cost:
    """Return the cost of one vector per side (2 x dim wide): both sides gathered, each direction its own product."""
    width = 2 * s.dim
    product = 2 * s.local * s.global_batch * width
    logits = SOFTMAX_BYTES * s.local * s.global_batch
    gathered = 2 * s.global_batch * width * s.token_bytes
    remote = gathered * (s.gpus - 1) / s.gpus
    return Cost(2 * 3 * product, logits + gathered, 2 * remote)


def fused(s: Setting, exchange: str = "gather", recompute: bool = False) -> Cost:
    """Return the cost of the native backend, and of tiled on a CPU.

    Text is packed, every pair scored once, maps are saved and the backward adds rows.

    The memory is tiled's, with one tile. Its sorts on a CPU are not flops and are not counted.
    """
    pairs = s.local * s.global_batch
    product = 2 * pairs * s.n1 * s.n2 * s.dim
    row_sums = 2 * 2 * pairs * (s.n1 + s.n2) * s.dim  # each winner is added once on either side
    index_bytes = 1 if max(s.n1, s.n2_padded) <= 256 else 2
    maps = 0 if recompute else pairs * (s.n1 + s.n2) * index_bytes
    matrices = SOFTMAX_BYTES * pairs
    all_texts = s.global_batch * s.n2 * s.dim
    if exchange == "gather":  # all tokens, their float32 gradients, and those once more padded for the wire
        remote = all_texts * (s.token_bytes + 2 * 4)
    else:  # the block in hand and the one arriving; a gradient being computed, one leaving, one arriving
        remote = all_texts / s.gpus * (2 * s.token_bytes + 3 * 4)
    received = all_texts * (s.gpus - 1) / s.gpus
    passes = 1 if exchange == "gather" else 2  # the ring sends the tokens again in the backward
    traffic = received * (passes * s.token_bytes + 4) + 2 * 4 * pairs
    tile = min(s.tile_bytes, 4 * pairs * s.n1 * s.n2)
    return Cost(product * (2 if recompute else 1) + row_sums, maps + matrices + remote + tile, traffic)
