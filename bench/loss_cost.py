"""Count what forms of the token-wise loss cost per GPU and step, next to the encoders: python -m bench.loss_cost

By default for the paper's base model (global batch 40,960 on 128 GPUs, ViT-B/32); ``--help`` lists what can be changed.
docs/interaction_how.md explains the design from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple

from filip.command import option, run_command
from filip.train.losses.term import SOFTMAX_BYTES, Setting
from filip.train.losses.token_wise import packed_memory
from late_interaction.triton_layout import GROUP, cut, rows_of


class Cost(NamedTuple):
    """The cost of one step on one GPU, forward and backward."""

    flops: float
    memory: float  # bytes in addition to the rank's tokens and their gradients
    traffic: float  # bytes received from other GPUs


def clip(s: Setting) -> Cost:
    """Return the cost of one vector per side (2 x dim wide): both sides gathered, each direction its own product."""
    width = 2 * s.dim
    product = 2 * s.local * s.global_batch * width
    gathered = 2 * s.global_batch * width * s.token_bytes
    remote = gathered * (s.gpus - 1) / s.gpus
    return Cost(2 * 3 * product, SOFTMAX_BYTES * s.local * s.global_batch + gathered, 2 * remote)


def fused(s: Setting, exchange: str = "gather", recompute: bool = False) -> Cost:
    """Return the cost of the native backend, and of tiled on a CPU.

    Text is packed, every pair scored once, maps are saved and the backward adds rows.

    The memory is tiled's, with one tile. Its sorts on a CPU are not flops and are not counted.
    """
    pairs = s.local * s.global_batch
    product = 2 * pairs * s.n1 * s.n2 * s.dim
    row_sums = 2 * 2 * pairs * (s.n1 + s.n2) * s.dim  # each winner is added once on either side
    received = s.global_batch * s.n2 * s.dim * (s.gpus - 1) / s.gpus
    passes = 1 if exchange == "gather" else 2  # the ring sends the tokens again in the backward
    traffic = received * (passes * s.token_bytes + 4) + 2 * 4 * pairs
    return Cost(product * (2 if recompute else 1) + row_sums, packed_memory(s, exchange, recompute), traffic)


@dataclass
class Step(Setting):
    """A step with the encoders of the paper's FILIP base."""

    image_layers: int = option(12, "layers of the image encoder", at_least=1)
    image_width: int = option(768, "width of the image encoder", at_least=1)
    text_layers: int = option(12, "layers of the text encoder", at_least=1)
    text_width: int = option(512, "width of the text encoder", at_least=1)
    patch_side: int = option(32, "px of a patch's side", at_least=1)


def encoder_flops(s: Step) -> float:
    """Count both encoders' flops for the local batch, forward and backward, as this project computes them.

    Captions are packed, so that only the attention is padded. tests/train/test_fleet.py compares it with PyTorch's
    count.
    """
    patch = 2 * s.n1 * s.patch_side**2 * 3 * s.image_width
    blocks = s.image_layers * block_flops(s.n1 + 1, s.n1 + 1, s.image_width, 8 * s.image_width**2)
    text = s.text_layers * block_flops(s.n2, s.n2_padded, s.text_width, 8 * s.text_width**2)
    projections = 2 * s.dim * ((s.n1 + 1) * s.image_width + s.n2 * s.text_width)
    return 3 * (patch + blocks + text + projections) * s.local


def block_flops(tokens: float, columns: float, width: int, mlp: int) -> float:
    """Count a transformer block's forward pass for one sequence: two flops per product.

    Every token meets the attention's four matrices and the ``mlp`` weights of the MLP; scores and sums are computed
    over ``columns``, the length to which the attention alone is padded.
    """
    return tokens * 2 * (4 * width * width + mlp) + 4 * columns * columns * width


def dense_products(s: Step) -> float:
    """Count the three products of an exact loss without padding: one forward, one for each side's gradient."""
    return 3 * 2 * s.local * s.global_batch * s.n1 * s.n2 * s.dim


def materialised(s: Step, keep_ratio: float = 1.0) -> Cost:
    """Return the cost of the public re-implementations: padded text, both sides gathered, einsum per direction.

    ``keep_ratio`` of the tokens are selected (the paper: 0.25), which costs a product over the local batch.
    """
    n1, n2 = _selected(s.n1, keep_ratio), _selected(s.n2_padded, keep_ratio)
    product = 2 * s.local * s.global_batch * n1 * n2 * s.dim
    choosing = 2 * s.local**2 * s.n1 * s.n2_padded * s.dim if keep_ratio < 1 else 0
    similarity = s.local * s.global_batch * n1 * n2 * s.token_bytes
    gathered = s.global_batch * (n1 + n2) * s.dim * s.token_bytes
    remote = gathered * (s.gpus - 1) / s.gpus
    matrices = SOFTMAX_BYTES * s.local * s.global_batch
    return Cost(2 * 3 * product + choosing, 2 * similarity + 2 * gathered + matrices, 2 * remote)


def tiled_on_gpu(s: Step) -> Cost:
    """Return the cost of the tiled backend with gather on a GPU.

    It has one product forward, and one of a dense tile for each side's gradient.
    """
    return fused(s)._replace(flops=dense_products(s))


def triton(s: Step) -> Cost:
    """Return the cost of the Triton backend with gather.

    It has three products of padded tiles, one forward and one for each side's gradient.
    """
    lengths = caption_lengths(s)
    packed = fused(replace(s, tile_bytes=0))
    entries = sum(tiles + tiles % 2 for tiles in _tiles_of_groups(lengths)) * GROUP
    index_bytes = 1 if max(s.n1, s.n2_padded) <= 255 else 2
    slots = -(-s.global_batch // GROUP) * GROUP
    maps = s.local * (slots * s.n1 + entries) * index_bytes
    unpadded = s.local * s.global_batch * (s.n1 + s.n2) * index_bytes
    weights = 2 * s.token_bytes * s.local * slots
    # The running maximum of images of several blocks; the parts in which the image gradient is summed
    launches = 4 * s.local * entries if len(cut(s.n1, 128)) > 1 else 0
    copied = entries * s.dim * s.token_bytes  # the texts in the order of the tiles
    parts = -(-1024 // -(-s.local * rows_of(s.n1, 128) // 128))
    partial = 4 * s.local * s.n1 * s.dim * parts
    scratch = copied + max(launches, weights + partial)
    flops = triton_flops(s.local, s.n1, s.dim, lengths)
    return Cost(flops, packed.memory + maps - unpadded + scratch, packed.traffic)


def triton_flops(images: int, n1: int, dim: int, lengths: list[int]) -> int:
    """Count the flops of the Triton backend's forward and backward, at most.

    An image takes the rows of its blocks, and all captions of a group as many columns as its longest, in the text
    gradient an even number of them.
    """
    tiles = _tiles_of_groups(lengths)
    even = [number + number % 2 for number in tiles]
    return 2 * images * rows_of(n1, 128) * (2 * sum(tiles) + sum(even)) * GROUP * dim


def _tiles_of_groups(lengths: list[int]) -> list[int]:
    ordered = sorted(lengths)
    return [max(ordered[first : first + GROUP]) for first in range(0, len(ordered), GROUP)]


def caption_lengths(s: Step) -> list[int]:
    """Return the lengths of a batch.

    They are normal with a standard deviation of a third of the mean, from 3 tokens to ``n2_padded``.
    """
    normal = NormalDist(s.n2, s.n2 / 3)
    drawn = (normal.inv_cdf((i + 0.5) / s.global_batch) for i in range(s.global_batch))
    return [min(max(round(length), 3), s.n2_padded) for length in drawn]


def _selected(tokens: int, keep_ratio: float) -> int:
    return max(1, -int(-tokens * keep_ratio // 1))


BATCHES = (4096, 8192, 16_384, 40_960)


def table(s: Step) -> str:
    """Return one line of costs for each form of the loss, with the encoders' flops for comparison."""
    encoders = encoder_flops(s)
    rows = [
        ("CLIP, one vector per side", clip(s)),
        ("padded einsum, all tokens", materialised(s)),
        ("padded einsum, 25 % of tokens", materialised(s, 0.25)),
        ("this engine, all tokens, gather", fused(s)),
        ("  … gather, the Triton kernels", triton(s)),
        ("  … gather, tiled on a GPU", tiled_on_gpu(s)),
        ("this engine, all tokens, ring", fused(s, "ring")),
        ("  … ring, maps recomputed", fused(s, "ring", recompute=True)),
    ]
    lines = [
        f"Global batch {s.global_batch:,} on {s.gpus} GPUs ({s.local} pairs each), {s.n1} image tokens, captions "
        f"of {s.n2:g} tokens (padded: {s.n2_padded}), {s.dim} features.",
        f"Encoders of one GPU, forward and backward: {encoders / 1e12:.1f} TFLOP.",
        "",
        f"{'loss, per GPU and step':34s}{'TFLOP':>9s}{'% of encoders':>15s}{'memory GB':>11s}{'received GB':>13s}",
    ]
    for name, cost in rows:
        lines.append(
            f"{name:34s}{cost.flops / 1e12:9.2f}{100 * cost.flops / encoders:15.1f}"
            f"{cost.memory / 1e9:11.2f}{cost.traffic / 1e9:13.2f}"
        )
    shares = (
        f"{n:,}: {dense_products(r) / encoder_flops(r):.0%}"
        for n in BATCHES
        for r in [replace(s, global_batch=n, gpus=1)]
    )
    lines += ["", f"Three exact dense products over the encoders, by global batch: {', '.join(shares)}."]
    return "\n".join(lines)


def main(setting: Step) -> None:
    """Count flops, memory and traffic of the token-wise loss per GPU and step, next to CLIP's and the encoders'."""
    print(table(setting))


if __name__ == "__main__":
    run_command(main, Step)
