"""Define the Triton kernels of the smooth maximum; filip.interaction.triton_smooth launches them and explains them."""

from __future__ import annotations

import triton
import triton.language as tl

from filip.interaction.triton_kernels import _VARYING, _dot, _images


@triton.jit
def _product(
    images, source, texts, row, n_rows: tl.constexpr, n_entries: tl.constexpr, d,
    BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Multiply rows of images with rows of texts, [n_rows, n_entries], in pieces of their features."""
    feature = tl.arange(0, BLOCK_K)
    tile = tl.zeros([n_rows, n_entries], tl.float32)
    for low in range(0, d, BLOCK_K):
        part = low + feature
        x = tl.load(images + source[:, None] * d + part[None, :], mask=(part < d)[None, :], other=0.0)
        y = tl.load(texts + row[None, :] * d + part[:, None], mask=(part < d)[:, None], other=0.0)
        tile = _dot(x, y, tile, WIDEN)
    return tile


@triton.jit(do_not_specialize=[*_VARYING, "to_exponent", "to_logarithm"])
def smooth_forward_kernel(
    images, texts, places_ptr, text_ptr, length_ptr, first_ptr, positions_ptr, row_ptr,
    i2t, t2i, row_sums, entry_sums,
    n1, d, start, n_images, n_texts, n_groups, n_tiles, to_exponent, to_logarithm,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
    RAGGED: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # The first axis of the grid varies fastest: the texts of a group stay in the cache while all images meet them.
    group = tl.program_id(1)
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    place = (tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
    image, first_row, tokens = _images(place, places_ptr, n_images, n1, RAGGED)
    k = start + tl.arange(0, ROWS)
    source = first_row[:, None] + tl.minimum(k[None, :], tokens[:, None] - 1)
    source = tl.reshape(source, [IMAGES * ROWS])
    exists = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
    slot = group * GROUP + tl.arange(0, GROUP)
    text = tl.load(text_ptr + slot)
    length = tl.load(length_ptr + slot)
    first = tl.load(first_ptr + group)
    real = (place < n_images)[:, None] & (text >= 0)[None, :]
    sums = tl.zeros([IMAGES * ROWS, GROUP], tl.float32)
    logarithms = tl.zeros([IMAGES, GROUP], tl.float32)
    for p in range(0, tl.load(positions_ptr + group)):
        entry = (first + p) * GROUP + tl.arange(0, GROUP)
        row = tl.load(row_ptr + entry).to(tl.int64)
        tile = _product(images, source, texts, row, IMAGES * ROWS, GROUP, d, BLOCK_K, WIDEN)
        own = p < length
        power = tl.where(exists[:, None] & own[None, :], tl.exp2(tile * to_exponent), 0.0)
        sums += power
        column = tl.sum(tl.reshape(power, [IMAGES, ROWS, GROUP]), axis=1)
        at = image[:, None] * n_entries + entry[None, :]
        if not FIRST:
            column += tl.load(entry_sums + at, mask=real, other=0.0)
        if LAST:
            logarithms += tl.where(
                own[None, :] & real, tl.log2(tl.where(own[None, :] & real, column, 1.0)), 0.0
            )
        if SAVE or not LAST:
            tl.store(entry_sums + at, column, mask=(place < n_images)[:, None])
    if SAVE:
        tl.store(row_sums + source[:, None] * n_slots + slot[None, :], sums, mask=exists[:, None])
    known = exists[:, None] & (length > 0)[None, :]
    of_rows = tl.where(known, tl.log2(tl.where(known, sums, 1.0)), 0.0)
    total = tl.sum(tl.reshape(of_rows, [IMAGES, ROWS, GROUP]), axis=1) / tokens[:, None]
    score = image[:, None] * n_texts + text[None, :]
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
    images, texts, gradient, length_ptr, first_ptr, positions_ptr, row_ptr, weight_i, weight_t, row_sums, entry_sums,
    places_ptr, listed, n_listed_ptr, n1, d, n_images, n_rows, n_groups, n_tiles, splits, to_exponent,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    chunks = tl.cdiv(n1, ROWS)
    block = tl.program_id(0) // chunks
    split = tl.program_id(1)
    place = (block * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
    image, first_row, tokens = _images(place, places_ptr, n_images, n1, RAGGED)
    k = (tl.program_id(0) % chunks) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    source = first_row[:, None] + tl.minimum(k[None, :], tokens[:, None] - 1)
    rows = tl.reshape(source, [IMAGES * ROWS])
    total = tl.zeros([IMAGES * ROWS, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + block), splits):
        group = tl.load(listed + block * n_groups + i)
        slot = group * GROUP + tl.arange(0, GROUP)
        length = tl.load(length_ptr + slot)
        of_i = tl.load(weight_i + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        sums = tl.load(row_sums + source[:, :, None] * n_slots + slot[None, None, :])
        first = tl.load(first_ptr + group)
        for p in range(0, tl.load(positions_ptr + group)):
            entry = (first + p) * GROUP + tl.arange(0, GROUP)
            row = tl.load(row_ptr + entry).to(tl.int64)
            own = p < length
            tile = _product(images, rows, texts, row, IMAGES * ROWS, GROUP, d, BLOCK_K, WIDEN)
            column = tl.load(entry_sums + image[:, None] * n_entries + entry[None, :])
            weights = _gradient_tile(tile, to_exponent, of_i, of_t, sums, column, own)
            y = tl.load(texts + row[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
            total = _dot(weights.to(y.dtype), y, total, WIDEN)
    inside = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
    at = (split.to(tl.int64) * n_rows + rows) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=inside[:, None] & (feature < d)[None, :])


@triton.jit(do_not_specialize=[*_VARYING, "to_exponent"])
def smooth_text_gradient_kernel(
    images, texts, gradient, length_ptr, group_ptr, position_ptr, row_ptr, weight_i, weight_t, row_sums, entry_sums,
    places_ptr, listed, n_listed_ptr, n1, d, n_images, n_rows, n_groups, n_tiles, splits, to_exponent,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    slot = tl.load(group_ptr + tl.program_id(0)) * GROUP + tl.arange(0, GROUP)
    own = tl.load(position_ptr + tl.program_id(0)) < tl.load(length_ptr + slot)
    entry = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    row = tl.load(row_ptr + entry).to(tl.int64)
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunks = tl.cdiv(n1, ROWS)
    blocks = tl.cdiv(n_images, IMAGES)
    total = tl.zeros([GROUP, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + tl.program_id(0)) * chunks, splits):
        block = tl.load(listed + tl.program_id(0) * blocks + i // chunks)
        place = (block * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
        image, first_row, tokens = _images(place, places_ptr, n_images, n1, RAGGED)
        k = (i % chunks) * ROWS + tl.arange(0, ROWS)
        source = first_row[:, None] + tl.minimum(k[None, :], tokens[:, None] - 1)
        rows = tl.reshape(source, [IMAGES * ROWS])
        tile = _product(images, rows, texts, row, IMAGES * ROWS, GROUP, d, BLOCK_K, WIDEN)
        of_i = tl.load(weight_i + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        sums = tl.load(row_sums + source[:, :, None] * n_slots + slot[None, None, :])
        column = tl.load(entry_sums + image[:, None] * n_entries + entry[None, :])
        weights = _gradient_tile(tile, to_exponent, of_i, of_t, sums, column, own)
        # Rows that do not exist count as zeros, whatever their weights; entries that do not are not stored.
        inside = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
        inside = inside[:, None] & (feature < d)[None, :]
        x = tl.load(images + rows[:, None] * d + feature[None, :], mask=inside, other=0.0)
        total = _dot(tl.trans(weights.to(x.dtype)), x, total, WIDEN)
    at = gradient + ((split.to(tl.int64) * n_rows + row) * d)[:, None] + feature[None, :]
    own = own[:, None] & (feature < d)[None, :]
    if RAGGED:  # images of other sizes came before
        total += tl.load(at, mask=own, other=0.0)
    tl.store(at, total, mask=own)
