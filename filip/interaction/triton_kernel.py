"""Triton kernels for GPUs: one product tile feeds both maxima; the backward multiplies the winners' weights.

Status: written for fp16, bf16 and float32 on NVIDIA compute capability 8.0 and newer. Tests compare every value in
Triton's interpreter on a CPU (``TRITON_INTERPRET=1``) and look at the machine code for 8.0 and 9.0
(tests/interaction/test_triton.py); no GPU has run them. Triton dropped Volta's tensor cores after 3.1, so on V100
"auto" takes the tiled backend. float64 is not supported.

Layout. Captions are put in order of length and cut into groups of 64. A tile is *one position* of the 64 captions of a
group: 64 rows of text tokens, those of captions that end before the group's longest repeating their last token, which
cannot change a maximum. So captions of any length are scored by one kernel with almost no padding, and the maximum over
the tokens of a caption is a running maximum over tiles, element by element, that never crosses a thread. An image
occupies 16, 32, 64 or 128 rows of a block; longer ones are scored 128 rows at a time.

Backward. From the arg-max maps a tile of the similarity's gradient is rebuilt in registers (two one-hot matrices times
their weights) and multiplied with the tokens of the other side. Adding the winners' rows instead, as on the CPU, is a
thirteenth of the arithmetic, but outside the tensor cores, and has to read a row for each addition: no faster
(docs/interaction.md has the estimate). Tiles whose weights are all negligible are left out. No atomics: each program
owns what it writes, and the result has the same bits each time.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

GROUP = 64  # captions of a group: the text rows of a tile
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# Weights of 16-bit tokens are scaled, item by item, to at most 2^14: where an entry wins both ways two are added, and
# float16 ends at 65,504. What is below 2^-24 then is 0 in float16 and dropped in all types, 2^-38 of the largest: less
# than float32's rounding of the sum, for up to 30,000 captions even if every one is dropped.
LARGEST, NEGLIGIBLE = 2.0**14, 2.0**-24
PROGRAMS = 1024  # in a launch, where there is work for them, so that 132 processors are evenly busy


def unavailable_reason(image_tokens: Tensor, longest: int) -> str:
    """Why these kernels cannot compute this problem; "" if they can."""
    if image_tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take float16, bfloat16 and float32, not {image_tokens.dtype}"
    if INTERPRETED and image_tokens.device.type == "cpu":
        return ""
    if image_tokens.device.type != "cuda":
        return f"the Triton kernels run on CUDA devices, not on {image_tokens.device.type}"
    return ""


def launch_options(dtype: torch.dtype, n1: int, d: int, capability: int) -> dict[str, dict[str, int | bool]]:
    """Block sizes, warps and pipeline stages of the three kernels, for a GPU of compute ``capability`` (90 = 9.0).

    The largest that neither spill registers nor ask for more shared memory than there is; two blocks of the forward
    share a processor.
    """
    wide, features = dtype == torch.float32, power_of_two(d)
    # Data-centre cards from Hopper on multiply from shared memory, where the image tokens stay; others would want them
    # in registers, which do not hold them. And 12.0 has the shared memory of 8.6, 99 KB.
    large = 90 <= capability < 120
    resident = large and not wide and features <= 256
    forward = {
        "BLOCK_K": features if resident else min(features, 32 if wide else 64),
        "RESIDENT": resident,
        "num_warps": 8,
        "num_stages": 1 if resident else 3,
    }
    if not wide:
        forward["maxnreg"] = (
            128  # so that two blocks of 256 threads share a processor and each hides the other's waits
        )
    block_d = min(features, 256 if resident else 32 if wide and not large else 128)
    backward = {"BLOCK_D": block_d, "num_warps": 8, "num_stages": 2}
    return {
        "forward": {**_rows(n1, 128), **forward},
        "image": {**_rows(n1, 128), **backward},
        "text": {**_rows(n1, 64), **backward},
    }


def _rows(n1: int, most: int) -> dict[str, int]:
    """Rows of an image in a block of ``most`` rows, and the images beside one another in it."""
    rows = min(power_of_two(n1), most)
    return {"ROWS": rows, "IMAGES": most // rows}


class Layout(NamedTuple):
    """Captions in order of length, in groups of 64; a slot per caption, an entry per caption and position."""

    text: Tensor  # [slots] int32: the caller's index of the caption; -1 where the last group has none
    length: Tensor  # [slots] int32: its tokens; 0 where there is none
    first: Tensor  # [groups] int32: the group's first tile, of 64 entries
    positions: Tensor  # [groups] int32: its tiles, that is, tokens of its longest caption
    slot: Tensor  # [entries] int32; entries are in order of group, position, caption
    position: Tensor  # [entries] int32
    row: Tensor  # [entries] int32: the packed row of the token; a caption that has ended repeats its last


def lay_out(lengths: list[int], device: torch.device) -> Layout:
    """Where the kernels find the tokens of captions of ``lengths`` tokens."""
    per_text = torch.tensor(lengths, dtype=torch.int32)
    length, text = per_text.sort(stable=True)
    before = (per_text.cumsum(0) - per_text)[text]
    missing = -len(lengths) % GROUP
    length, before = F.pad(length, (0, missing)), F.pad(before, (0, missing))
    positions = length.view(-1, GROUP).amax(dim=1)
    first = positions.cumsum(0) - positions
    group = torch.repeat_interleave(positions)  # of each tile
    position = torch.arange(len(group)) - first[group]
    if (
        len(group) % 2
    ):  # the text gradient takes two tiles at once; this one lies behind the end of its captions
        group, position = (
            F.pad(group, (0, 1), value=len(positions) - 1),
            F.pad(position, (0, 1), value=int(positions[-1])),
        )
    slot = group[:, None] * GROUP + torch.arange(GROUP)
    row = before[slot] + torch.minimum(position[:, None], (length[slot] - 1).clamp_min(0))
    entries = slot.flatten(), position.repeat_interleave(GROUP), row.flatten()
    found = (F.pad(text, (0, missing), value=-1), length, first, positions, *entries)
    return Layout(*(part.to(device, torch.int32) for part in found))


def forward(
    image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], save_for_backward: bool = True
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """s^I, s^T [images, texts] float32 and the arg-max maps [images, n1, slots] and [images, entries]."""
    images, texts = image_tokens.contiguous(), text_tokens.contiguous()
    b, n1, d = images.shape
    layout = lay_out(lengths, images.device)
    slots, entries, groups = len(layout.text), len(layout.row), len(layout.first)
    i2t = images.new_empty(b, len(lengths), dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    kept = b if save_for_backward else 0
    image_map = images.new_empty(kept, n1, slots, dtype=index_dtype(max(lengths)))
    text_map = images.new_empty(kept, entries, dtype=index_dtype(n1))
    options = launch_options(images.dtype, n1, d, _capability(images.device))["forward"]
    rows, blocks = options["ROWS"], triton.cdiv(b, options["IMAGES"])
    # The maximum over the rows scored so far, of images that take several launches, and its row
    best = images.new_empty(b if n1 > rows else 0, entries, dtype=torch.float32)
    best_row = torch.empty_like(best, dtype=torch.int32)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for start in range(0, n1, rows):
            _forward_kernel[(blocks, groups)](
                images, texts, *layout[:4], layout.row, i2t, t2i, image_map, text_map, best, best_row,
                n1, d, start, b, len(lengths), groups, entries // GROUP,
                FIRST=start == 0, LAST=start + rows >= n1, SAVE=save_for_backward, GROUP=GROUP,
                WIDEN=_widen(images), **options,
            )  # fmt: skip
    return i2t, t2i, (image_map, text_map) if save_for_backward else ()


def backward(
    grad_i2t: Tensor,
    grad_t2i: Tensor,
    image_tokens: Tensor,
    text_tokens: Tensor,
    lengths: list[int],
    residuals: tuple[Tensor, ...],
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Gradients of both inputs, float32; one that is not needed is an empty tensor."""
    images, texts = image_tokens.contiguous(), text_tokens.contiguous()
    b, n1, d = images.shape
    device = images.device
    layout = lay_out(lengths, device)
    options = launch_options(images.dtype, n1, d, _capability(device))
    per_text = torch.tensor(lengths, device=device)
    upstream = grad_i2t.float() / n1, grad_t2i.float() / per_text
    shared = (*residuals, n1, d, b, len(layout.first), len(layout.row) // GROUP)
    grad_images = images.new_empty(0, n1, d, dtype=torch.float32)
    grad_texts = texts.new_empty(0, d, dtype=torch.float32)
    with torch.cuda.device_of(images):
        if needs[0]:
            weights, scale = _scaled(upstream, 1, layout, images.dtype)
            option = options["image"]
            active = _active(weights, option["IMAGES"])  # [blocks of images, groups]
            chunks = triton.cdiv(n1, option["ROWS"])
            programs = len(active) * chunks
            partial = images.new_empty(_splits(programs, active.shape[1]), b, n1, d, dtype=torch.float32)
            _image_gradient_kernel[(programs, len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                texts, partial, layout.first, layout.positions, layout.row, *weights, *_listed(active), *shared,
                len(partial), GROUP=GROUP, WIDEN=_widen(images), **option,
            )  # fmt: skip
            grad_images = partial.sum(dim=0) * scale[:, :, None]
        if needs[1]:
            weights, scale = _scaled(upstream, 0, layout, images.dtype)
            option = options["text"]
            of_groups = _active(weights, option["IMAGES"]).T  # [groups, blocks of images]
            # Two tiles, of one group or of neighbours
            active = of_groups[layout.slot.view(-1, 2, GROUP)[:, :, 0].long() // GROUP].any(dim=1)
            partial = images.new_empty(
                _splits(len(active), active.shape[1]), len(texts), d, dtype=torch.float32
            )
            _text_gradient_kernel[(len(active), len(partial), triton.cdiv(d, option["BLOCK_D"]))](
                images, partial, layout.length, layout.slot, layout.position, layout.row, *weights, *_listed(active),
                *shared, len(texts), len(partial), GROUP=GROUP, WIDEN=_widen(images), **option,
            )  # fmt: skip
            of_rows = scale.flatten().repeat_interleave(per_text, output_size=len(texts))
            grad_texts = partial.sum(dim=0) * of_rows[:, None]
    return grad_images, grad_texts


def _scaled(
    upstream: tuple[Tensor, Tensor], dim: int, layout: Layout, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both weights [images, slots] in the tokens' dtype, scaled item by item along ``dim``; and the scales."""
    largest = torch.maximum(upstream[0].abs(), upstream[1].abs()).amax(dim=dim, keepdim=True)
    scale = (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
    weights = []
    for weight in upstream:
        scaled = (weight / scale)[:, layout.text.long()]
        negligible = (scaled.abs() <= NEGLIGIBLE) | (layout.length == 0)
        weights.append(scaled.masked_fill(negligible, 0).to(dtype))
    return (weights[0], weights[1]), scale


def _active(weights: tuple[Tensor, Tensor], images: int) -> Tensor:
    """[blocks of images, groups] bool: where some weight is not zero."""
    some = ((weights[0] != 0) | (weights[1] != 0)).view(len(weights[0]), -1, GROUP).any(dim=2)
    return F.pad(some, (0, 0, 0, -len(some) % images)).view(-1, images, some.shape[1]).any(dim=1)


def _listed(active: Tensor) -> tuple[Tensor, Tensor]:
    """Per row of ``active`` the columns that are true, before those that are not; and how many are true."""
    order = active.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    return order.int(), active.sum(dim=1, dtype=torch.int32)


def _splits(programs: int, steps: int) -> int:
    """Among how many programs to divide the ``steps`` of each of ``programs``; a function of the shapes alone."""
    return min(steps, triton.cdiv(PROGRAMS, programs))


# Their values change from batch to batch; specialised (by divisibility by 16), each new kind would compile the kernels
# again in the middle of a training.
_VARYING = ["start", "n_images", "n_texts", "n_groups", "n_tiles", "n_tokens", "splits"]


@triton.jit
def _dot(x, y, total, WIDEN: tl.constexpr):
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="tf32x3")  # of float32: three products of tensor cores


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    images, texts, text_ptr, length_ptr, first_ptr, positions_ptr, row_ptr,
    i2t, t2i, image_map, text_map, best, best_row,
    n1, d, start, n_images, n_texts, n_groups, n_tiles,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAVE: tl.constexpr, GROUP: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_K: tl.constexpr, RESIDENT: tl.constexpr,
):  # fmt: skip
    # The first axis of the grid varies fastest: the texts of a group stay in the cache while all images meet them.
    group = tl.program_id(1)
    n_slots, n_entries = (
        n_groups * GROUP,
        n_tiles * GROUP,
    )  # multiples of 64, so that loads of the maps are wide
    image = (tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
    k = start + tl.arange(0, ROWS)
    source = tl.minimum(image, n_images - 1)[:, None] * n1 + tl.minimum(k, n1 - 1)[None, :]
    source = tl.reshape(source, [IMAGES * ROWS])
    slot = group * GROUP + tl.arange(0, GROUP)
    text = tl.load(text_ptr + slot)
    length = tl.load(length_ptr + slot)
    first = tl.load(first_ptr + group)
    feature = tl.arange(0, BLOCK_K)
    real = (image < n_images)[None, :] & (text >= 0)[:, None]
    if RESIDENT:
        x = tl.load(images + source[None, :] * d + feature[:, None], mask=(feature < d)[:, None], other=0.0)
    won = tl.full([GROUP, IMAGES * ROWS], float("-inf"), tl.float32)
    winner = tl.zeros([GROUP, IMAGES * ROWS], tl.int32)
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
        better = tile > won  # strictly: of equal maxima the earlier token stays
        won = tl.where(better, tile, won)
        winner = tl.where(better, p, winner)
        by_image = tl.reshape(tile, [GROUP, IMAGES, ROWS])
        top, where = tl.max(by_image, axis=2, return_indices=True)  # of equal maxima the lower row
        at = image[None, :] * n_entries + entry[:, None]
        if SAVE:
            where = tl.minimum(start + where, n1 - 1)  # rows beyond n1 repeat the last
        if not FIRST:
            before = tl.load(best + at, mask=real, other=0.0)
            if SAVE:
                where = tl.where(top > before, where, tl.load(best_row + at, mask=real, other=0))
            top = tl.maximum(top, before)
        own = p < length
        if LAST:
            summed += tl.where(own[:, None], top, 0.0)
            if SAVE:  # n1, a row that there is not, where the caption has ended
                where = tl.where(own[:, None], where, n1)
                tl.store(text_map + at, where.to(text_map.dtype.element_ty), mask=(image < n_images)[None, :])
        else:
            tl.store(best + at, top, mask=real)
            if SAVE:
                tl.store(best_row + at, where, mask=real)
    if SAVE:
        inside = tl.reshape((image < n_images)[:, None] & (k < n1)[None, :], [IMAGES * ROWS])
        at_row = image_map + source[None, :] * n_slots + slot[:, None]
        tl.store(at_row, winner.to(image_map.dtype.element_ty), mask=inside[None, :])
    inside = (k < n1)[None, None, :]
    total = tl.sum(tl.where(inside, tl.reshape(won, [GROUP, IMAGES, ROWS]), 0.0), axis=2) / n1
    score = image[None, :] * n_texts + text[:, None]
    if not FIRST:
        total += tl.load(i2t + score, mask=real, other=0.0)
    tl.store(i2t + score, total, mask=real)
    if LAST:
        tl.store(t2i + score, summed / tl.maximum(length, 1)[:, None], mask=real)


@triton.jit
def _gradient_tile(winner, position, weight_i, to_image, k, weight_t):
    """Gradient of the similarity of rows with entries, [IMAGES * ROWS, entries].

    ``winner`` [IMAGES, ROWS, entries] holds the position in the entry's caption that each row has chosen, ``to_image``
    [IMAGES, entries] the row of the image that each entry has.
    """
    of_rows = tl.where(winner == position, weight_i[:, None, :], 0.0)
    of_entries = tl.where(to_image[:, None, :] == k[None, :, None], weight_t[:, None, :], 0.0)
    both = of_rows + of_entries
    return tl.reshape(both, [both.shape[0] * both.shape[1], both.shape[2]])


@triton.jit(do_not_specialize=_VARYING)
def _image_gradient_kernel(
    texts, gradient, first_ptr, positions_ptr, row_ptr, weight_i, weight_t, listed, n_listed_ptr,
    image_map, text_map, n1, d, n_images, n_groups, n_tiles, splits,
    GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    chunks = tl.cdiv(n1, ROWS)
    block = tl.program_id(0) // chunks
    split = tl.program_id(1)
    image = (block * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
    known = tl.minimum(image, n_images - 1)
    k = (tl.program_id(0) % chunks) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    source = known[:, None] * n1 + tl.minimum(k, n1 - 1)[None, :]
    total = tl.zeros([IMAGES * ROWS, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + block), splits):
        group = tl.load(listed + block * n_groups + i)
        slot = group * GROUP + tl.arange(0, GROUP)
        winner = tl.load(image_map + source[:, :, None] * n_slots + slot[None, None, :]).to(tl.int32)
        of_i = tl.load(weight_i + known[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + known[:, None] * n_slots + slot[None, :]).to(tl.float32)
        first = tl.load(first_ptr + group)
        for p in range(0, tl.load(positions_ptr + group)):
            entry = (first + p) * GROUP + tl.arange(0, GROUP)
            row = tl.load(row_ptr + entry).to(tl.int64)
            y = tl.load(texts + row[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
            to_image = tl.load(text_map + known[:, None] * n_entries + entry[None, :]).to(tl.int32)
            weights = _gradient_tile(winner, p, of_i, to_image, k, of_t)
            total = _dot(weights.to(y.dtype), y, total, WIDEN)
    inside = tl.reshape((image < n_images)[:, None] & (k < n1)[None, :], [IMAGES * ROWS])
    at = (split.to(tl.int64) * n_images * n1 + tl.reshape(source, [IMAGES * ROWS])) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=inside[:, None] & (feature < d)[None, :])


@triton.jit(do_not_specialize=_VARYING)
def _text_gradient_kernel(
    images, gradient, length_ptr, slot_ptr, position_ptr, row_ptr, weight_i, weight_t, listed, n_listed_ptr,
    image_map, text_map, n1, d, n_images, n_groups, n_tiles, n_tokens, splits,
    GROUP: tl.constexpr, WIDEN: tl.constexpr, ROWS: tl.constexpr, IMAGES: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    split = tl.program_id(1)
    n_slots, n_entries = n_groups * GROUP, n_tiles * GROUP
    entry = tl.program_id(0) * (2 * GROUP) + tl.arange(0, 2 * GROUP)
    slot = tl.max_contiguous(tl.multiple_of(tl.load(slot_ptr + entry), GROUP), GROUP)
    position = tl.load(position_ptr + entry)
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    chunks = tl.cdiv(n1, ROWS)
    blocks = tl.cdiv(n_images, IMAGES)
    total = tl.zeros([2 * GROUP, BLOCK_D], tl.float32)
    for i in range(split, tl.load(n_listed_ptr + tl.program_id(0)) * chunks, splits):
        block = tl.load(listed + tl.program_id(0) * blocks + i // chunks)
        image = (block * IMAGES + tl.arange(0, IMAGES)).to(tl.int64)
        image_exists = image < n_images
        image = tl.minimum(image, n_images - 1)
        k = (i % chunks) * ROWS + tl.arange(0, ROWS)
        source = image[:, None] * n1 + tl.minimum(k, n1 - 1)[None, :]
        exists = image_exists[:, None] & (k < n1)[None, :]
        winner = tl.load(image_map + source[:, :, None] * n_slots + slot[None, None, :]).to(tl.int32)
        winner = tl.where(exists[:, :, None], winner, -1)
        of_i = tl.load(weight_i + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.load(weight_t + image[:, None] * n_slots + slot[None, :]).to(tl.float32)
        of_t = tl.where(image_exists[:, None], of_t, 0.0)
        to_image = tl.load(text_map + image[:, None] * n_entries + entry[None, :]).to(tl.int32)
        to_image = tl.where(to_image < n1, to_image, -1)
        weights = _gradient_tile(winner, position[None, None, :], of_i, to_image, k, of_t)
        source = tl.reshape(source, [IMAGES * ROWS])
        x = tl.load(images + source[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
        total = _dot(tl.trans(weights.to(x.dtype)), x, total, WIDEN)
    own = position < tl.load(length_ptr + slot)
    at = (split.to(tl.int64) * n_tokens + tl.load(row_ptr + entry).to(tl.int64)) * d
    tl.store(gradient + at[:, None] + feature[None, :], total, mask=own[:, None] & (feature < d)[None, :])


def index_dtype(size: int) -> torch.dtype:
    """The type of a map whose numbers go up to ``size`` itself, which stands for "none"."""
    if size <= 255:
        return torch.uint8
    return torch.int16 if size < 1 << 15 else torch.int32


def power_of_two(number: int) -> int:
    """The smallest power of two >= number, and >= 16, which tensor cores want."""
    return max(16, 1 << (number - 1).bit_length())


def _capability(device: torch.device) -> int:
    if device.type != "cuda":  # the interpreter
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _widen(tokens: Tensor) -> bool:
    # Triton's interpreter holds bfloat16 as integers and multiplies those; a GPU needs no detour.
    return INTERPRETED and tokens.dtype == torch.bfloat16
