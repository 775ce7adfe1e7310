"""Define the Triton kernels; filip.interaction.triton_backend launches them and explains how they work."""

from __future__ import annotations

import triton
import triton.language as tl

# Their values change from batch to batch; specialised (by divisibility by 16), each new kind would compile the kernels
# again in the middle of a training.
_VARYING = ["start", "n_images", "n_texts", "n_groups", "n_tiles", "n_rows", "splits"]


@triton.jit
def _dot(x, y, total, WIDEN: tl.constexpr):
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="tf32x3")  # for float32: three products of tensor cores


@triton.jit
def _images(place, places_ptr, n_images, n1, RAGGED: tl.constexpr):
    """Return index, first row and tokens of the images at these places of a launch; beyond the last, of the last."""
    known = tl.minimum(place, n_images - 1)
    if RAGGED:
        image = tl.load(places_ptr + known).to(tl.int64)
        first = tl.load(places_ptr + n_images + known).to(tl.int64)
        return image, first, tl.load(places_ptr + 2 * n_images + known)
    return known, known * n1, tl.full(place.shape, n1, tl.int32)


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
    row = (253 - (powers.to(tl.int32, bitcast=True) >> 23)) >> 1
    row = tl.where(powers > 0, row + tl.arange(0, ROWS // HALF) * HALF, ROWS)
    return tl.min(row, axis=2)


@triton.jit(do_not_specialize=_VARYING)
def forward_kernel(
    images, texts, places_ptr, text_ptr, length_ptr, first_ptr, positions_ptr, row_ptr,
    i2t, t2i, image_map, text_map, best, best_row,
    n1, d, start, n_images, n_texts, n_groups, n_tiles,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
    RAGGED: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    # The first axis of the grid varies fastest: the texts of a group stay in the cache while all images meet them.
    group = tl.program_id(1)
    n_slots, n_entries = (
        n_groups * GROUP,
        n_tiles * GROUP,
    )  # multiples of 64, so that loads of the maps are wide
    place = (tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
    image, first_row, tokens = _images(place, places_ptr, n_images, n1, RAGGED)
    k = start + tl.arange(0, ROWS)
    source = first_row[:, None] + tl.minimum(k[None, :], tokens[:, None] - 1)
    source = tl.reshape(source, [IMAGES * ROWS])
    slot = group * GROUP + tl.arange(0, GROUP)
    text = tl.load(text_ptr + slot)
    length = tl.load(length_ptr + slot)
    first = tl.load(first_ptr + group)
    feature = tl.arange(0, BLOCK_K)
    real = (place < n_images)[None, :] & (text >= 0)[:, None]
    if RESIDENT:
        x = tl.load(images + source[None, :] * d + feature[:, None], mask=(feature < d)[:, None], other=0.0)
    won = tl.full([GROUP, IMAGES * ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([GROUP, IMAGES * ROWS], tl.float32)
    summed = tl.zeros([GROUP, IMAGES], tl.float32)
    for p in range(0, tl.load(positions_ptr + group)):
        entry = (first + p) * GROUP + tl.arange(0, GROUP)
        row = tl.load(row_ptr + entry).to(tl.int64)
        tile = tl.zeros([GROUP, IMAGES * ROWS], tl.float32)
        if RESIDENT:
            y = tl.load(texts + row[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
            tile = _dot(y, x, tile, WIDEN)
        else:
            for low in range(0, d, BLOCK_K):
                part = low + feature
                y = tl.load(texts + row[:, None] * d + part[None, :], mask=(part < d)[None, :], other=0.0)
                z = tl.load(images + source[None, :] * d + part[:, None], mask=(part < d)[:, None], other=0.0)
                tile = _dot(y, z, tile, WIDEN)
        # Strictly: among equal maxima the earlier token stays. One comparison gives 1 or 0; a selection is one more.
        winner += tl.where(tile > won, 1.0, 0.0) * (p - winner)
        won = tl.maximum(won, tile)
        by_image = tl.reshape(tile, [GROUP, IMAGES, ROWS])
        top = tl.max(by_image, axis=2)
        at = image[None, :] * n_entries + entry[:, None]
        if SAVE:
            where = tl.minimum(start + _lowest(tile, top, IMAGES, ROWS), tokens[None, :] - 1)
        if not FIRST:
            before = tl.load(best + at, mask=real, other=0.0)
            if SAVE:
                where = tl.where(top > before, where, tl.load(best_row + at, mask=real, other=0))
            top = tl.maximum(top, before)
        own = p < length
        if LAST:
            summed += tl.where(own[:, None], top, 0.0)
            if SAVE:  # a row that does not exist, where the caption has ended
                where = tl.where(own[:, None], where, tokens[None, :])
                tl.store(text_map + at, where.to(text_map.dtype.element_ty), mask=(place < n_images)[None, :])
        else:
            tl.store(best + at, top, mask=real)
            if SAVE:
                tl.store(best_row + at, where, mask=real)
    if SAVE:
        inside = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
        at_row = image_map + source[None, :] * n_slots + slot[:, None]
        tl.store(at_row, winner.to(image_map.dtype.element_ty), mask=inside[None, :])
    inside = (k[None, :] < tokens[:, None])[None, :, :]
    total = tl.sum(tl.where(inside, tl.reshape(won, [GROUP, IMAGES, ROWS]), 0.0), axis=2) / tokens[None, :]
    score = image[None, :] * n_texts + text[:, None]
    if not FIRST:
        total += tl.load(i2t + score, mask=real, other=0.0)
    tl.store(i2t + score, total, mask=real)
    if LAST:
        tl.store(t2i + score, summed / tl.maximum(length, 1)[:, None], mask=real)


@triton.jit
def _gradient_tile(winner, position, weight_i, to_image, k, weight_t):
    """Compute the gradient of the similarity of rows with tiles of one group, [IMAGES * ROWS, TILES * GROUP].

    ``winner`` [IMAGES, ROWS, GROUP] holds the position in the caption that each row has chosen, ``to_image``
    [IMAGES, TILES, GROUP] the row of the image that each entry has; both in float32, since a comparison of float32
    gives 1 or 0 to multiply with. ``position`` [TILES].
    """
    k, position = k.to(tl.float32)[None, :, None, None], position.to(tl.float32)[None, None, :, None]
    of_rows = tl.where(winner[:, :, None, :] == position, 1.0, 0.0) * weight_i[:, None, None, :]
    of_entries = tl.where(to_image[:, None, :, :] == k, 1.0, 0.0) * weight_t[:, None, None, :]
    both = of_rows + of_entries
    return tl.reshape(both, [both.shape[0] * both.shape[1], both.shape[2] * both.shape[3]])


@triton.jit(do_not_specialize=_VARYING)
def image_gradient_kernel(
    texts, gradient, first_ptr, positions_ptr, row_ptr, weight_i, weight_t, image_map, text_map,
    places_ptr, listed, n_listed_ptr, n1, d, n_images, n_rows, n_groups, n_tiles, splits,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
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
    total = tl.zeros([IMAGES * ROWS, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + block), splits):
        group = tl.load(listed + block * n_groups + i)
        slot = group * GROUP + tl.arange(0, GROUP)
        winner = tl.load(image_map + source[:, :, None] * n_slots + slot[None, None, :]).to(tl.float32)
        of_i = tl.load(weight_i + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        first = tl.load(first_ptr + group)
        for p in range(0, tl.load(positions_ptr + group)):
            entry = (first + p) * GROUP + tl.arange(0, GROUP)
            row = tl.load(row_ptr + entry).to(tl.int64)
            y = tl.load(texts + row[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
            to_image = tl.load(text_map + image[:, None] * n_entries + entry[None, :]).to(tl.float32)
            weights = _gradient_tile(winner, p + tl.arange(0, 1), of_i, to_image[:, None, :], k, of_t)
            total = _dot(weights.to(y.dtype), y, total, WIDEN)
    inside = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
    at = (split.to(tl.int64) * n_rows + tl.reshape(source, [IMAGES * ROWS])) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=inside[:, None] & (feature < d)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def text_gradient_kernel(
    images, gradient, length_ptr, group_ptr, position_ptr, row_ptr, weight_i, weight_t, image_map, text_map,
    places_ptr, listed, n_listed_ptr, n1, d, n_images, n_rows, n_groups, n_tiles, splits,
    RAGGED: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    # Two tiles: two positions of the same captions
    tile = tl.program_id(0) * 2
    group = tl.load(group_ptr + tile)
    slot = group * GROUP + tl.arange(0, GROUP)
    position = tl.load(position_ptr + tile) + tl.arange(0, 2)
    entry = tile * GROUP + tl.arange(0, 2)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunks = tl.cdiv(n1, ROWS)
    blocks = tl.cdiv(n_images, IMAGES)
    total = tl.zeros([2 * GROUP, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + tl.program_id(0)) * chunks, splits):
        block = tl.load(listed + tl.program_id(0) * blocks + i // chunks)
        place = (block * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
        image, first_row, tokens = _images(place, places_ptr, n_images, n1, RAGGED)
        k = (i % chunks) * ROWS + tl.arange(0, ROWS)
        source = first_row[:, None] + tl.minimum(k[None, :], tokens[:, None] - 1)
        winner = tl.load(image_map + source[:, :, None] * n_slots + slot[None, None, :]).to(tl.float32)
        of_i = tl.load(weight_i + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        to_image = tl.load(text_map + image[:, None, None] * n_entries + entry[None, :, :]).to(tl.int32)
        in_chunk = (to_image - (i % chunks) * ROWS).to(tl.float32)
        weights = _gradient_tile(winner, position, of_i, in_chunk, tl.arange(0, ROWS), of_t)
        # Rows that do not exist count as zeros, whatever their weights.
        exists = tl.reshape((place < n_images)[:, None] & (k[None, :] < tokens[:, None]), [IMAGES * ROWS])
        source = tl.reshape(source, [IMAGES * ROWS])
        inside = exists[:, None] & (feature < d)[None, :]
        x = tl.load(images + source[:, None] * d + feature[None, :], mask=inside, other=0.0)
        total = _dot(tl.trans(weights.to(x.dtype)), x, total, WIDEN)
    own = tl.reshape(position[:, None] < tl.load(length_ptr + slot)[None, :], [2 * GROUP])
    row = tl.reshape(tl.load(row_ptr + entry), [2 * GROUP]).to(tl.int64)
    at = gradient + ((split.to(tl.int64) * n_rows + row) * d)[:, None] + feature[None, :]
    own = own[:, None] & (feature < d)[None, :]
    if RAGGED:  # images of other sizes came before
        total += tl.load(at, mask=own, other=0.0)
    tl.store(at, total, mask=own)
