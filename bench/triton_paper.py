"""The loss on an H100 on paper: python -m bench.triton_paper

Counts, and no measurement. What the kernels take beyond their products comes from their machine code
(``python -m tests.interaction.triton_compiled 90 bfloat16 49``, whose figures are repeated here; for images that differ
in length with ``49 ragged`` in place of 49, for blocks of 16 and 32 rows ``80 ragged last`` and ``96 ragged last``).
"""

from dataclasses import replace
from typing import NamedTuple

import torch

from bench.loss_cost import Step, caption_lengths, dense_products, encoder_flops, triton_flops
from late_interaction.lengths import Lengths
from late_interaction.packing import Tokens
from late_interaction.triton_layout import cut, parts_of, rows_of

PEAK, PROCESSORS = 989e12, 132  # dense bfloat16 flops a second
MEMORY = 3.35e12  # bytes a second
CLOCK = PEAK / PROCESSORS / 4096  # of which a processor multiplies 4,096 a cycle
ENCODERS_OF_PEAK = 0.4  # an assumption: the share of the peak that encoders reach
TILE_FLOPS, TILE_BYTES = 2 * 128 * 64 * 256, 64 * 256 * 2  # a product, and the operand that it reads anew
CACHE = 5.5e12  # an assumption: bytes a second from the second-level cache
A100_PEAK, A100_CACHE, A100_TILE_BYTES = 312e12, 7.2e12, 3 * TILE_BYTES  # at best; its image tile is not resident
LOAD_CYCLES = 700  # an assumption: a tile of text comes from the second-level cache
BASE, LARGE = Step(), replace(
    Step(), global_batch=30_720, gpus=192, n1=256, image_layers=24, image_width=1024, patch_side=14,
    text_width=768,
)  # fmt: skip


class Kernel(NamedTuple):
    """A kernel's inner loop, of one tile: a processor takes 64 lanes a cycle at half rate, and issues for 128."""

    half_rate: float  # instructions
    instructions: float
    threads: int
    product: int = TILE_FLOPS // 4096  # cycles of the tensor cores

    @property
    def cycles(self) -> float:
        return max(self.half_rate / 64, self.instructions / 128) * self.threads


KERNELS = Kernel(303, 544, 128), Kernel(115, 289, 256), Kernel(296 / 2, 665 / 2, 256)
# For images that differ in length, by the rows of a block
RAGGED = {
    16: (Kernel(595, 998, 128), Kernel(276, 481, 256), Kernel(320 / 2, 747 / 2, 256)),
    32: (Kernel(550, 875, 128), Kernel(267, 466, 256), Kernel(321 / 2, 715 / 2, 256)),
    64: (Kernel(302, 547, 128), Kernel(111, 291, 256), Kernel(318 / 2, 715 / 2, 256)),
}


def as_compiled(kernels: tuple[Kernel, Kernel, Kernel]) -> float:
    """Return the cycles of a tile in forward, image and text gradient.

    A block of the forward loads, multiplies and compares one after the other, and two blocks share a processor; in a
    gradient half of a product overlaps with the next tile's instructions.
    """
    forward, *gradients = kernels
    first = (LOAD_CYCLES + forward.product + forward.cycles) / 2
    return first + sum(kernel.cycles + kernel.product / 2 for kernel in gradients)


def seconds_of_kernels(s: Step, overlapped: bool) -> float:
    """Return the least time of the three kernels: instructions hidden behind products, or as the code is compiled."""
    hidden = sum(max(kernel.product, kernel.cycles) for kernel in KERNELS)
    return tiles(s) / PROCESSORS * (hidden if overlapped else as_compiled(KERNELS)) / CLOCK


def seconds_of_copies(s: Step) -> float:
    """Return the time of reading and writing all texts before the forward and before the gradient of the images."""
    return 2 * 2 * s.global_batch * s.n2 * s.dim * s.token_bytes / MEMORY


def rows_of_unequal_images(images: int = 320) -> str:
    """Return the rows and cycles of images of 10 to 88 tokens as a share of those of as many images of 49."""
    each = Lengths(10 + i % 79 for i in range(images))
    tokens = Tokens(torch.empty(sum(each), 1), torch.empty(1, 1), [1], each)
    blocks = [-(-part.blocks * part.rows // 128) for part in parts_of(tokens, 128, in_order=True)]
    counted, equal = sum(rows_of(n, 128) for n in each), images * rows_of(49, 128)
    cycles = sum(rows * as_compiled(RAGGED[rows]) for n in each for _, rows in cut(n, 128))
    return (
        f"{images} images of 10 to 88 tokens: {counted / equal:.2f} times the rows of as many of 49; "
        f"{128 * sum(blocks) / equal:.2f} with the last block of each of {len(blocks)} launches; "
        f"{cycles / equal / as_compiled(KERNELS):.2f} times their cycles as compiled"
    )


def tiles(s: Step) -> float:
    """Return the tiles of one of the three products, padded as the kernels pad."""
    return triton_flops(s.local, s.n1, s.dim, caption_lengths(s)) / 3 / TILE_FLOPS


def table(s: Step = BASE) -> str:
    """Write the table of docs/interaction_how.md."""
    encoders, three = encoder_flops(s), dense_products(s)
    padded = 3 * tiles(s) * TILE_FLOPS
    lines = [
        "| one GPU's share of the base model | TFLOP | ms | of the encoders' time | of three products |",
        "|---|--:|--:|--:|--:|",
    ]
    each = tiles(s)  # of a product
    for name, flops, seconds, peak in (
        ("encoders, forward and backward, at 40 % of the peak (an assumption)", encoders,
         encoders / ENCODERS_OF_PEAK / PEAK, PEAK),
        ("forward product alone, nothing padded, at the peak", three / 3, three / 3 / PEAK, PEAK),
        ("all three products, nothing padded, at the peak", three, three / PEAK, PEAK),
        ("… the bound: one and a half times that", 1.5 * three, 1.5 * three / PEAK, PEAK),
        ("these kernels' three products, padded, at the peak", padded, padded / PEAK, PEAK),
        ("… with the other instructions, all hidden behind the products or the reverse", padded,
         seconds_of_kernels(s, True), PEAK),
        ("… with the other instructions, overlapped as the code is compiled", padded,
         seconds_of_kernels(s, False), PEAK),
        ("… and the texts copied in the order of the tiles, once for either pass", padded,
         seconds_of_kernels(s, False) + seconds_of_copies(s), PEAK),
        ("… their reads from the second-level cache alone, at 5.5 TB/s (an assumption)", padded,
         3 * each * TILE_BYTES / CACHE, PEAK),
        ("the smooth maximum's five products, each tile once more for either gradient", 5 / 3 * padded,
         5 / 3 * padded / PEAK, PEAK),
        ("two products, if 2:4 sparse tensor cores halved both gradients' (not written)", 2 * three / 3,
         2 * three / 3 / PEAK, PEAK),
        ("an A100's forward product, padded, at its peak of 312 TFLOP/s", padded / 3,
         padded / 3 / A100_PEAK, A100_PEAK),
        ("… and what that reads from the cache, at 7.2 TB/s", padded / 3,
         each * A100_TILE_BYTES / A100_CACHE, A100_PEAK),
    ):  # fmt: skip
        share = seconds / (encoders / ENCODERS_OF_PEAK / peak)
        lines.append(
            f"| {name} | {flops / 1e12:.1f} | {1e3 * seconds:.1f} | {100 * share:.0f} % "
            f"| {seconds * peak / three:.2f} |"
        )
    return "\n".join(lines)


def large() -> str:
    """Write the same bound for the paper's large model."""
    kernels = seconds_of_kernels(LARGE, False) + seconds_of_copies(LARGE)
    encoders = encoder_flops(LARGE) / ENCODERS_OF_PEAK / PEAK
    return f"large: {1e3 * kernels:.0f} ms as compiled, encoders {1e3 * encoders:.0f} ms: {kernels / encoders:.0%}"


if __name__ == "__main__":
    print(table(), large(), rows_of_unequal_images(), sep="\n")
