"""Define the Triton kernels; late_interaction.triton_backend launches them and explains how they work."""

from __future__ import annotations

import triton
import triton.language as tl

# Their values change from batch to batch; specialised (by divisibility by 16), each new kind would compile the kernels
# again in the middle of a training.
_VARYING = ["n_blocks", "n_images", "n_texts", "n_groups", "n_rows", "n_text_rows", "splits"]


@triton.jit
def _dot(x, y, total, WIDEN: tl.constexpr):
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    if x.dtype == tl.float32:
        return tl.dot(x, y, total, input_precision="tf32x3")  # three products of tensor cores
    return tl.dot(x, y, total)


@triton.jit
def _images(place, places_ptr, n_blocks, n1, RAGGED: tl.constexpr):
    """Return index, first row and tokens of the images of these blocks, and which token begins the block.

    Beyond the last block they repeat the last.
    """
    known = tl.minimum(place, n_blocks - 1)
    if RAGGED:
        tokens = tl.load(places_ptr + 2 * n_blocks + known)
        start = tl.load(places_ptr + 3 * n_blocks + known)
        return tl.load(places_ptr + known), tl.load(places_ptr + n_blocks + known), tokens, start
    return known, known * n1, tl.full(place.shape, n1, tl.int32), tl.zeros(place.shape, tl.int32)


@triton.jit
def _within(rows: tl.constexpr, feature, d: tl.constexpr):
    """Return where these features of adjacent rows are, [rows, features], from the beginning of the first.

    The features of whole rows are numbered in one, by which the compiler knows their distances from one address.
    """
    if feature.shape[0] == d:
        return tl.max_contiguous(tl.multiple_of(tl.reshape(tl.arange(0, rows * d), [rows, d]), [1, 16]), [1, 16])
    return tl.arange(0, rows)[:, None] * d + feature[None, :]


@triton.jit
def _rows(tokens, block, rows: tl.constexpr, feature, d: tl.constexpr):
    """Return these features of a block of adjacent rows, [rows, features]."""
    at = tokens + block.to(tl.int64) * (rows * d) + _within(rows, feature, d)
    return tl.load(at, mask=(feature < d)[None, :], other=0.0)


@triton.jit
def _of_group(group, count, index, GROUP: tl.constexpr):
    """Return the places of items [..., GROUP] in the state of each group (or tile), item and caption."""
    at = group.to(tl.int64) * (count * GROUP) + index.to(tl.int64)[:, None] * GROUP
    return at + tl.arange(0, GROUP)[None, :]


@triton.jit
def _lowest(tile, top, IMAGES: tl.constexpr, ROWS: tl.constexpr):
    """Return the lowest row of each image that has the maximum ``top`` [GROUP, IMAGES].

    It is in the exponent of the sum of 4^-row over the rows that have it, of up to 64 at once: multiplied and added, at
    full rate, where selecting and comparing rows would be at half.
    """
    HALF: tl.constexpr = min(ROWS, 64)
    halves = tl.reshape(tile, [tile.shape[0], IMAGES, ROWS // HALF, HALF])
    power = tl.exp2(126.0 - 2 * tl.arange(0, HALF))
    powers = tl.sum(tl.where(halves == top[:, :, None, None], 1.0, 0.0) * power, axis=3)
    row = ((254 << 23) - powers.to(tl.int32, bitcast=True)) >> 24  # 127 where there is none
    return tl.min(row + tl.arange(0, ROWS // HALF) * HALF, axis=2)


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    images, texts, places_ptr, text_ptr, length_ptr, first_ptr, positions_ptr,
    i2t, t2i, image_map, text_map, best,
    n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_texts, width,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
    RAGGED: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    # The first axis of the grid varies fastest: the texts of a group stay in the cache while all images meet them.
    group = tl.program_id(1)
    place = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    image, first_row, tokens, start = _images(place, places_ptr, n_blocks, n1, RAGGED)
    k = start[:, None] + tl.arange(0, ROWS)[None, :]
    source = tl.reshape(first_row[:, None] + tl.minimum(k, tokens[:, None] - 1), [IMAGES * ROWS])
    slot = group * GROUP + tl.arange(0, GROUP)
    text = tl.load(text_ptr + slot)
    length = tl.load(length_ptr + slot)
    first = tl.load(first_ptr + group)
    feature = tl.arange(0, BLOCK_K)
    real = (place < n_blocks)[None, :] & (text >= 0)[:, None]
    if RESIDENT:
        tokens_at = images + source[None, :].to(tl.int64) * d + feature[:, None]
        x = tl.load(tokens_at, mask=(feature < d)[:, None], other=0.0)
    won = tl.full([GROUP, IMAGES * ROWS], float("-inf"), tl.float32)
    since = tl.full([GROUP, IMAGES * ROWS], -1.0, tl.float32)  # positions since the winner's
    summed = tl.zeros([GROUP, IMAGES], tl.float32)
    positions = tl.load(positions_ptr + group)
    for p in range(0, positions):
        tile = tl.zeros([GROUP, IMAGES * ROWS], tl.float32)
        if RESIDENT:
            y = _rows(texts, first + p, GROUP, feature, d)
            tile = _dot(y, x, tile, WIDEN)
        else:
            for low in range(0, width, BLOCK_K):  # of d features; the compiler would unroll a number that it knows
                part = low + feature
                y = _rows(texts, first + p, GROUP, part, d)
                tokens_at = images + source[None, :].to(tl.int64) * d + part[:, None]
                z = tl.load(tokens_at, mask=(part < d)[:, None], other=0.0)
                tile = _dot(y, z, tile, WIDEN)
        # Strictly: among equal maxima the earlier token stays. One comparison gives 0 or 1; a selection is one more.
        stays = tl.where(tile > won, 0.0, 1.0)
        since = since * stays + stays
        won = tl.maximum(won, tile)
        by_image = tl.reshape(tile, [GROUP, IMAGES, ROWS])
        top = tl.max(by_image, axis=2)
        at = _of_group(first + p, n_images, image, GROUP).T
        if SAVE:
            # Rows beyond an image repeat its last token, which may be rounded otherwise there, and win.
            where = tl.minimum(start[None, :] + _lowest(tile, top, IMAGES, ROWS), tokens[None, :] - 1)
        if not FIRST:
            before = tl.load(best + at, mask=real, other=0.0)
            if SAVE:
                found = tl.load(text_map + at, mask=real, other=0).to(tl.int32)
                where = tl.where(top > before, where, found)
            top = tl.maximum(top, before)
        own = p < length
        if LAST:
            summed += tl.where(own[:, None], top, 0.0)
            if SAVE:  # a row that does not exist, where the caption has ended
                where = tl.where(own[:, None], where, tokens[None, :])
        else:
            tl.store(best + at, top, mask=real)
        if SAVE:
            tl.store(text_map + at, where.to(text_map.dtype.element_ty), mask=(place < n_blocks)[None, :])
    if SAVE:
        inside = tl.reshape((place < n_blocks)[:, None] & (k < tokens[:, None]), [IMAGES * ROWS])
        winner = positions - 1 - since
        at = _of_group(group, n_rows, source, GROUP).T
        tl.store(image_map + at, winner.to(image_map.dtype.element_ty), mask=inside[None, :])
    inside = (k < tokens[:, None])[None, :, :]
    total = tl.sum(tl.where(inside, tl.reshape(won, [GROUP, IMAGES, ROWS]), 0.0), axis=2) / tokens[None, :]
    score = image[None, :].to(tl.int64) * n_texts + text[:, None]
    if not FIRST:
        total += tl.load(i2t + score, mask=real, other=0.0)
    tl.store(i2t + score, total, mask=real)
    if LAST:
        tl.store(t2i + score, summed / tl.maximum(length, 1)[:, None], mask=real)


@triton.jit
def _gradient_tile(winner, position, weight_i, to_image, weight_t):
    """Compute the gradient of the similarity of rows with tiles of one group, [IMAGES * ROWS, TILES * GROUP].

    ``winner`` [IMAGES, ROWS, GROUP] holds the position in the caption that each row has chosen, ``to_image``
    [IMAGES, TILES, GROUP] the row of the block that each entry has; both in float32, since a comparison of float32
    gives 1 or 0 to multiply with. ``position`` [TILES].
    """
    k = tl.arange(0, winner.shape[1]).to(tl.float32)[None, :, None, None]
    position = position.to(tl.float32)[None, None, :, None]
    of_rows = tl.where(winner[:, :, None, :] == position, 1.0, 0.0) * weight_i[:, None, None, :]
    of_entries = tl.where(to_image[:, None, :, :] == k, 1.0, 0.0) * weight_t[:, None, None, :]
    both = of_rows + of_entries
    return tl.reshape(both, [both.shape[0] * both.shape[1], both.shape[2] * both.shape[3]])


@triton.jit(do_not_specialize=_VARYING)
def image_gradient_kernel(
    texts, gradient, first_ptr, positions_ptr, weight_i, weight_t, image_map, text_map,
    places_ptr, listed, n_listed_ptr, n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_groups, splits,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
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
        winner = tl.load(image_map + _of_group(group, n_rows, source, GROUP)).to(tl.float32)
        winner = tl.reshape(winner, [IMAGES, ROWS, GROUP])
        at = _of_group(group, n_images, image, GROUP)
        of_i, of_t = tl.load(weight_i + at).to(tl.float32), tl.load(weight_t + at).to(tl.float32)
        first = tl.load(first_ptr + group)
        chosen = text_map + _of_group(first, n_images, image, GROUP)
        for p in range(0, tl.load(positions_ptr + group)):
            y = _rows(texts, first + p, GROUP, feature, d)
            in_block = (tl.load(chosen).to(tl.float32) - start.to(tl.float32)[:, None])[:, None, :]
            chosen += n_images * GROUP
            weights = _gradient_tile(winner, p + tl.arange(0, 1), of_i, in_block, of_t)
            total = _dot(weights.to(y.dtype), y, total, WIDEN)
    inside = tl.reshape((place < n_blocks)[:, None] & (k < tokens[:, None]), [IMAGES * ROWS])
    at = (split.to(tl.int64) * n_rows + source) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=inside[:, None] & (feature < d)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def text_gradient_kernel(
    images, gradient, length_ptr, group_ptr, position_ptr, row_ptr, weight_i, weight_t, image_map, text_map,
    places_ptr, listed, n_listed_ptr, n1, d: tl.constexpr, n_blocks, n_images, n_rows, n_text_rows, splits,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    # Two tiles: two positions of the same captions
    tile = tl.program_id(0) * 2
    group = tl.load(group_ptr + tile)
    slot = group * GROUP + tl.arange(0, GROUP)
    position = tl.load(position_ptr + tile) + tl.arange(0, 2)
    entry = tile * GROUP + tl.arange(0, 2)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    # From here on distances fit 32 bits: a map of more rows of images than 2^25 would fit no GPU.
    of_group = image_map + group.to(tl.int64) * (n_rows * GROUP)
    weight_i += group.to(tl.int64) * (n_images * GROUP)
    weight_t += group.to(tl.int64) * (n_images * GROUP)
    text_map += tile.to(tl.int64) * (n_images * GROUP)
    blocks = tl.cdiv(n_blocks, IMAGES)
    of_slots = tl.arange(0, GROUP)[None, :]
    total = tl.zeros([2 * GROUP, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + tl.program_id(0)), splits):
        block = tl.load(listed + tl.program_id(0) * blocks + i)
        place = block * IMAGES + tl.arange(0, IMAGES)
        image, first_row, tokens, start = _images(place, places_ptr, n_blocks, n1, RAGGED)
        k = start[:, None] + tl.arange(0, ROWS)[None, :]
        source = tl.reshape(first_row[:, None] + tl.minimum(k, tokens[:, None] - 1), [IMAGES * ROWS])
        winner = tl.load(of_group + (source[:, None] * GROUP + of_slots)).to(tl.float32)
        winner = tl.reshape(winner, [IMAGES, ROWS, GROUP])
        at = image[:, None] * GROUP + of_slots
        of_i, of_t = tl.load(weight_i + at).to(tl.float32), tl.load(weight_t + at).to(tl.float32)
        to_image = tl.load(text_map + (at[:, None, :] + tl.arange(0, 2)[None, :, None] * (n_images * GROUP)))
        in_block = to_image.to(tl.float32) - start.to(tl.float32)[:, None, None]
        weights = _gradient_tile(winner, position, of_i, in_block, of_t)
        # Rows that do not exist are zeros, whatever their weights.
        x = _rows(images, block, IMAGES * ROWS, feature, d)
        total = _dot(tl.trans(weights.to(x.dtype)), x, total, WIDEN)
    own = tl.reshape(position[:, None] < tl.load(length_ptr + slot)[None, :], [2 * GROUP])
    row = tl.reshape(tl.load(row_ptr + entry), [2 * GROUP]).to(tl.int64)
    at = gradient + ((split.to(tl.int64) * n_text_rows + row) * d)[:, None] + feature[None, :]
    own = own[:, None] & (feature < d)[None, :]
    if RAGGED:  # other blocks came before
        total += tl.load(at, mask=own, other=0.0)
    tl.store(at, total, mask=own)
