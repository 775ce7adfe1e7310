"""The cost model against counts made by hand."""

import itertools
from dataclasses import replace

import pytest

from bench.loss_cost import (
    Step,
    caption_lengths,
    clip,
    dense_products,
    encoder_flops,
    fused,
    materialised,
    table,
    triton,
    triton_flops,
)
from filip.train.losses.term import SOFTMAX_BYTES
from late_interaction.triton_layout import cut, rows_of

EIGHT_GPUS = Step(global_batch=8192, gpus=8, tile_bytes=0)


def test_forward_of_the_packed_product() -> None:
    """It has 1,024 local images x 8,192 texts x 49 x 18 x 256, two flops each; a row sum per winner on both sides."""
    pairs = 1024 * 8192
    assert fused(EIGHT_GPUS).flops == 2 * pairs * 49 * 18 * 256 + 4 * pairs * (49 + 18) * 256
    assert fused(EIGHT_GPUS, recompute=True).flops - fused(EIGHT_GPUS).flops == 2 * pairs * 49 * 18 * 256


def test_the_triton_kernels_multiply_padded_tiles_three_times() -> None:
    """They pad 49 rows to 64, and a group of captions to its longest. triton_interpreted.py counts in the kernels."""
    assert triton_flops(10, 49, 256, [5] * 63 + [7]) == 2 * 10 * 64 * (7 + 7 + 8) * 64 * 256
    assert triton_flops(10, 196, 256, [5] * 64) == 2 * 10 * (128 + 64 + 16) * (5 + 5 + 6) * 64 * 256
    # Sorted by length, the paper's captions are hardly padded.
    base = Step()
    packed = 2 * base.local * base.global_batch * 49 * 18 * 256
    assert triton(base).flops == pytest.approx(3 * packed * 64 / 49, rel=0.02)
    lengths = caption_lengths(base)
    assert sum(lengths) / len(lengths) == pytest.approx(18, rel=0.01) and 3 <= min(lengths) <= max(lengths) <= 77


def test_images_of_any_length_take_fewer_rows_than_as_many_of_49() -> None:
    """They are cut into blocks of 16 to 128 rows that follow one another and hold all tokens."""
    for most, n in itertools.product((64, 128), range(1, 400)):
        blocks = cut(n, most)
        ends = [start + rows for start, rows in blocks]
        assert [start for start, _ in blocks] == [0, *ends[:-1]] and n <= ends[-1] <= max(n + 15, 1.34 * n)
        assert {rows for _, rows in blocks} <= {16, 32, 64, 128}
    assert sum(rows_of(n, 128) for n in range(10, 89)) < 0.9 * 79 * rows_of(49, 128)


def test_memory() -> None:
    pairs = 1024 * 8192
    maps_and_matrices = pairs * (49 + 18) + SOFTMAX_BYTES * pairs
    texts = 8192 * 18 * 256
    assert fused(EIGHT_GPUS).memory == maps_and_matrices + texts * (2 + 8)
    assert fused(EIGHT_GPUS, "ring").memory == maps_and_matrices + texts / 8 * (2 * 2 + 3 * 4)
    # A 16-bit similarity of one direction, padded to 77 tokens: 63 GB. The einsum holds one per direction.
    assert pairs * 49 * 77 * 2 == pytest.approx(63e9, rel=0.01)
    assert materialised(EIGHT_GPUS).memory == pytest.approx(2 * 63.3e9, rel=0.02)


def test_ring_memory_for_remote_tokens_does_not_grow_with_the_ranks() -> None:
    def remote(gpus: int) -> float:
        setting = Step(global_batch=320 * gpus, gpus=gpus, tile_bytes=0)
        return fused(setting, "ring", recompute=True).memory - SOFTMAX_BYTES * 320 * 320 * gpus

    assert remote(8) == remote(128)


def test_three_dense_products_grow_with_the_batch() -> None:
    """By rule they take 0.19 of ViT-B's encoders at 4,096 pairs, and ten times as much at ten times the batch."""
    small, large = (replace(Step(), global_batch=n, gpus=1) for n in (4096, 40_960))
    share = dense_products(small) / encoder_flops(small)
    assert 0.15 < share < 0.2
    assert dense_products(large) / encoder_flops(large) == pytest.approx(10 * share)


def test_a_quarter_of_the_tokens() -> None:
    quarter, whole = materialised(EIGHT_GPUS, 0.25), materialised(EIGHT_GPUS)
    assert 13 * 20 / (49 * 77) < quarter.flops / whole.flops < 0.1  # 13 and 20 are kept, and chosen at a price
    assert quarter.traffic < 0.3 * whole.traffic


def test_table_names_every_form() -> None:
    text = table(Step())
    assert "Global batch 40,960 on 128 GPUs (320 pairs each)" in text
    assert len([line for line in text.splitlines() if "engine" in line or "einsum" in line or "CLIP" in line]) == 5
    assert clip(Step()).flops < 0.01 * encoder_flops(Step())
