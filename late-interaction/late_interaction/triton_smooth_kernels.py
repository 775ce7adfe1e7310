"""Define the Triton kernels of the smooth maximum; late_interaction.triton_smooth launches them and explains them."""

from __future__ import annotations

import triton
import triton.language as tl

from late_interaction.triton_kernels import _VARYING, _dot, _images, _of_group, _rows


@triton.jit
def _product(
    images, block, texts, tile, n_rows: tl.constexpr, n_entries: tl.constexpr, d: tl.constexpr, width,
    BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Multiply a block of rows of images with a tile of texts, [n_rows, n_entries], in pieces of their features."""
    total = tl.zeros([n_rows, n_entries], tl.float32)
    for low in range(0, width, BLOCK_K):
        part = low + tl.arange(0, BLOCK_K)
        x = _rows(images, block, n_rows, part, d)
        y = _rows(texts, tile, n_entries, part, d)
        total = _dot(x, tl.trans(y), total, WIDEN)
    return total


@triton.jit(do_not_specialize=[*_VARYING, "to_exponent", "to_logarithm"])
def smooth_forward_kernel(
    images, texts, places_ptr, text_ptr, length_ptr, first_ptr, positions_ptr,
    i2t, t2i, row_sums, entry_sums,
    n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_texts, width, to_exponent, to_logarithm,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
    RAGGED: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The first axis of the grid varies fastest: the texts of a group stay in the cache while all images meet them.
    group = tl.program_id(1)
    place = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    image, first_row, tokens, start = _images(place, places_ptr, n_blocks, n1, RAGGED)
    k = start[:, None] + tl.arange(0, ROWS)[None, :]
    source = tl.reshape(first_row[:, None] + tl.minimum(k, tokens[:, None] - 1), [IMAGES * ROWS])
    exists = tl.reshape((place < n_blocks)[:, None] & (k < tokens[:, None]), [IMAGES * ROWS])
    slot = group * GROUP + tl.arange(0, GROUP)
    text = tl.load(text_ptr + slot)
    length = tl.load(length_ptr + slot)
    first = tl.load(first_ptr + group)
    real = (place < n_blocks)[:, None] & (text >= 0)[None, :]
    sums = tl.zeros([IMAGES * ROWS, GROUP], tl.float32)
    logarithms = tl.zeros([IMAGES, GROUP], tl.float32)
    for p in range(0, tl.load(positions_ptr + group)):
        tile = _product(images, tl.program_id(0), texts, first + p, IMAGES * ROWS, GROUP, d, width, BLOCK_K, WIDEN)
        own = p < length
        power = tl.where(exists[:, None] & own[None, :], tl.exp2(tile * to_exponent), 0.0)
        sums += power
        column = tl.sum(tl.reshape(power, [IMAGES, ROWS, GROUP]), axis=1)
        at = _of_group(first + p, n_images, image, GROUP)
        if not FIRST:
            column += tl.load(entry_sums + at, mask=real, other=0.0)
        if LAST:
            logarithms += tl.where(own[None, :] & real, tl.log2(tl.where(own[None, :] & real, column, 1.0)), 0.0)
        if SAVE or not LAST:
            tl.store(entry_sums + at, column, mask=(place < n_blocks)[:, None])
    if SAVE:
        tl.store(row_sums + _of_group(group, n_rows, source, GROUP), sums, mask=exists[:, None])
    known = exists[:, None] & (length > 0)[None, :]
    of_rows = tl.where(known, tl.log2(tl.where(known, sums, 1.0)), 0.0)
    total = tl.sum(tl.reshape(of_rows, [IMAGES, ROWS, GROUP]), axis=1) / tokens[:, None]
    score = image[:, None].to(tl.int64) * n_texts + text[None, :]
    if FIRST:
        total -= tl.log2(tl.maximum(length, 1).to(tl.float32))[None, :]
        total *= to_logarithm
    else:
        total = total * to_logarithm + tl.load(i2t + score, mask=real, other=0.0)
    tl.store(i2t + score, total, mask=real)
    if LAST:
        mean = logarithms / tl.maximum(length, 1)[None, :] - tl.log2(tokens.to(tl.float32))[:, None]
        tl.store(t2i + score, mean * to_logarithm, mask=real)


@triton.jit
def _gradient_tile(tile, to_exponent, weight_i, weight_t, row_sums, entry_sums, own):
    """Compute the gradient of the similarity of rows with a tile of a group, [IMAGES * ROWS, GROUP].

    weight_i, weight_t, entry_sums: [IMAGES, GROUP]. row_sums: [IMAGES, ROWS, GROUP]. own: [GROUP], whether the tile's
    position is one of the caption; the gradient is 0 where it is not.
    """
    of_rows = weight_i[:, None, :] / tl.where(own[None, None, :], row_sums, 1.0)
    of_entries = (weight_t / tl.where(own[None, :], entry_sums, 1.0))[:, None, :]
    both = tl.where(own[None, None, :], of_rows + of_entries, 0.0)
    return tl.exp2(tile * to_exponent) * tl.reshape(both, [both.shape[0] * both.shape[1], both.shape[2]])


@triton.jit(do_not_specialize=[*_VARYING, "to_exponent"])
def smooth_image_gradient_kernel(
    images, texts, gradient, length_ptr, first_ptr, positions_ptr, weight_i, weight_t, row_sums, entry_sums,
    places_ptr, listed, n_listed_ptr, n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_groups, splits, to_exponent,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    split = tl.program_id(1)
    place = block * IMAGES + tl.arange(0, IMAGES)
    image, first_row, tokens, start = _images(place, places_ptr, n_blocks, n1, RAGGED)
    k = start[:, None] + tl.arange(0, ROWS)[None, :]
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    source = tl.reshape(first_row[:, None] + tl.minimum(k, tokens[:, None] - 1), [IMAGES * ROWS])
    total = tl.zeros([IMAGES * ROWS, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + block), splits):
        group = tl.load(listed + block * n_groups + i)
        slot = group * GROUP + tl.arange(0, GROUP)
        length = tl.load(length_ptr + slot)
        at = _of_group(group, n_images, image, GROUP)
        of_i, of_t = tl.load(weight_i + at).to(tl.float32), tl.load(weight_t + at).to(tl.float32)
        sums = tl.reshape(tl.load(row_sums + _of_group(group, n_rows, source, GROUP)), [IMAGES, ROWS, GROUP])
        first = tl.load(first_ptr + group)
        for p in range(0, tl.load(positions_ptr + group)):
            own = p < length
            tile = _product(images, block, texts, first + p, IMAGES * ROWS, GROUP, d, d, BLOCK_K, WIDEN)
            column = tl.load(entry_sums + _of_group(first + p, n_images, image, GROUP))
            weights = _gradient_tile(tile, to_exponent, of_i, of_t, sums, column, own)
            y = _rows(texts, first + p, GROUP, feature, d)
            total = _dot(weights.to(y.dtype), y, total, WIDEN)
    inside = tl.reshape((place < n_blocks)[:, None] & (k < tokens[:, None]), [IMAGES * ROWS])
    at = (split.to(tl.int64) * n_rows + source) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=inside[:, None] & (feature < d)[None, :])


@triton.jit(do_not_specialize=[*_VARYING, "to_exponent"])
def smooth_text_gradient_kernel(
    images, texts, gradient, length_ptr, group_ptr, position_ptr, row_ptr, weight_i, weight_t, row_sums, entry_sums,
    places_ptr, listed, n_listed_ptr, n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_text_rows, splits, to_exponent,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    group = tl.load(group_ptr + tl.program_id(0))
    slot = group * GROUP + tl.arange(0, GROUP)
    own = tl.load(position_ptr + tl.program_id(0)) < tl.load(length_ptr + slot)
    entry = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    row = tl.load(row_ptr + entry).to(tl.int64)
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    blocks = tl.cdiv(n_blocks, IMAGES)
    total = tl.zeros([GROUP, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + tl.program_id(0)), splits):
        block = tl.load(listed + tl.program_id(0) * blocks + i)
        place = block * IMAGES + tl.arange(0, IMAGES)
        image, first_row, tokens, start = _images(place, places_ptr, n_blocks, n1, RAGGED)
        k = start[:, None] + tl.arange(0, ROWS)[None, :]
        source = tl.reshape(first_row[:, None] + tl.minimum(k, tokens[:, None] - 1), [IMAGES * ROWS])
        tile = _product(images, block, texts, tl.program_id(0), IMAGES * ROWS, GROUP, d, d, BLOCK_K, WIDEN)
        at = _of_group(group, n_images, image, GROUP)
        of_i, of_t = tl.load(weight_i + at).to(tl.float32), tl.load(weight_t + at).to(tl.float32)
        sums = tl.reshape(tl.load(row_sums + _of_group(group, n_rows, source, GROUP)), [IMAGES, ROWS, GROUP])
        column = tl.load(entry_sums + _of_group(tl.program_id(0), n_images, image, GROUP))
        weights = _gradient_tile(tile, to_exponent, of_i, of_t, sums, column, own)
        # Rows that do not exist are zeros, whatever their weights; entries that do not are not stored.
        x = _rows(images, block, IMAGES * ROWS, feature, d)
        total = _dot(tl.trans(weights.to(x.dtype)), x, total, WIDEN)
    at = gradient + ((split.to(tl.int64) * n_text_rows + row) * d)[:, None] + feature[None, :]
    own = own[:, None] & (feature < d)[None, :]
    if RAGGED:  # other blocks came before
        total += tl.load(at, mask=own, other=0.0)
    tl.store(at, total, mask=own)
