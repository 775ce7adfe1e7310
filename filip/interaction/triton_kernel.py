"""Triton kernels for GPUs: one product tile feeds both maxima; the backward multiplies the winners' weights.

Status: written for fp16, bf16 and float32 on NVIDIA compute capability 8.0 and newer. Tests compare every value in
Triton's interpreter on a CPU (``TRITON_INTERPRET=1``) and compile the kernels for 8.0 and 9.0
(tests/interaction/test_triton.py); they have not been run on a GPU. Triton dropped Volta's tensor cores after 3.1,
so on V100 "auto" takes the tiled backend. float64 and texts of more than 128 tokens are not supported.

Forward. One program scores one image against a tile of columns. A caption occupies 16, 32, 64 or 128
columns (its length class), and the columns beyond its length repeat its last token: a repeated token cannot
change a maximum, so the inner loop needs no mask. Rows of the image come in chunks of 64 with a running
maximum per column; rows beyond n1 repeat the last.

Backward. From the arg-max maps a tile of the similarity's gradient is rebuilt in registers (two one-hot
matrices times their weights) and multiplied with the tokens of the other side. So, unlike the CPU's, this backward
does multiply matrices: twice the forward's product for float32, four times for 16-bit tokens, whose weights are
split in a high and a low 16-bit part (filip/interaction/cost.py counts it). For fp16 the weights are scaled to at most
2^14 first, so that those down to 4e-9 of the largest keep all 11 bits of the high part. No atomics: each program owns
the rows that it writes.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_M = 64  # rows of an image in one chunk
LONGEST = 128  # tokens of a caption
_CLASSES = (16, 32, 64, 128)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable_reason(image_tokens: Tensor, longest: int) -> str:
    """Why these kernels cannot compute this problem; "" if they can."""
    if longest > LONGEST:
        return f"the Triton kernels take captions of at most {LONGEST} tokens, not {longest}"
    if image_tokens.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"the Triton kernels take float16, bfloat16 and float32, not {image_tokens.dtype}"
    if INTERPRETED and image_tokens.device.type == "cpu":
        return ""
    if image_tokens.device.type != "cuda":
        return f"the Triton kernels run on CUDA devices, not on {image_tokens.device.type}"
    return ""


def launch_options(dtype: torch.dtype, d: int, size: int) -> dict[str, dict[str, int]]:
    """Block sizes and warps of the three kernels for captions in ``size`` columns.

    The largest that neither spills registers nor asks for more shared memory than 8.0 has.
    """
    columns = max(64, size)
    features = 32 if dtype == torch.float32 else 64
    common = {"BLOCK_N": columns, "SIZE": size, "num_warps": 8}
    block_d = min(2 * features, _power_of_two(d))
    return {
        "forward": {**common, "BLOCK_M": BLOCK_M, "BLOCK_K": min(features, _power_of_two(d))},
        "image": {**common, "BLOCK_M": BLOCK_M, "BLOCK_D": block_d},
        "text": {**common, "BLOCK_M": 32 if columns == 64 else 16, "BLOCK_D": block_d},
    }


class _Class(NamedTuple):
    """Captions of one length class, laid out in tiles of columns."""

    size: int  # columns of a caption
    tiles: int
    row: Tensor  # [tiles * block] int32: packed row of the token in each column
    length: Tensor  # [tiles * block] int32: tokens of the caption if the column is its own token, else 0
    text: Tensor  # [tiles * block] int32: index of the caption; -1 in columns that fill up the last tile


def forward(
    image_tokens: Tensor, text_tokens: Tensor, lengths: list[int], save_for_backward: bool = True
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """s^I, s^T [images, texts] float32 and the arg-max maps [images, texts, n1] and [images, T]."""
    images, texts = image_tokens.contiguous(), text_tokens.contiguous()
    b, n1, d = images.shape
    i2t = images.new_empty(b, len(lengths), dtype=torch.float32)
    t2i = torch.empty_like(i2t)
    kept = b if save_for_backward else 0
    image_map = images.new_empty(
        kept, len(lengths), n1, dtype=torch.uint8
    )  # captions have at most 128 tokens
    text_map = images.new_empty(kept, len(texts), dtype=torch.uint8 if n1 <= 256 else torch.int16)
    with torch.cuda.device_of(images):  # Triton launches on the current device
        for c in _classes(lengths, images.device):
            _forward_kernel[(c.tiles, b)](  # the second axis of a grid is limited to 65,535
                images, texts, c.row, c.length, c.text, i2t, t2i, image_map, text_map,
                n1, len(lengths), len(texts), d,
                WIDEN=_widen(images), SAVE=save_for_backward, **launch_options(images.dtype, d, c.size)["forward"],
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
    image_map, text_map = residuals
    b, n1, d = images.shape
    per_text = torch.tensor(lengths, device=images.device)
    weight_i, weight_t = grad_i2t.float() / n1, grad_t2i.float() / per_text
    # At most 2^14: where an entry wins both ways its two weights are added, and float16 ends at 65,504.
    largest = torch.maximum(weight_i.abs().max(), weight_t.abs().max())
    scale = (largest * 2**-14).clamp_min(torch.finfo(torch.float32).tiny)
    weight_i, weight_t = (weight_i / scale).contiguous(), (weight_t / scale).contiguous()
    grad_images = torch.zeros(b if needs[0] else 0, n1, d, dtype=torch.float32, device=images.device)
    grad_texts = torch.zeros(len(texts) if needs[1] else 0, d, dtype=torch.float32, device=images.device)
    with torch.cuda.device_of(images):
        for c in _classes(lengths, images.device):
            options = launch_options(images.dtype, d, c.size)
            shared = (weight_i, weight_t, image_map, text_map, c.row, c.length, c.text)
            sizes = (n1, len(lengths), len(texts), d)
            rows, parts = triton.cdiv(n1, BLOCK_M), triton.cdiv(d, options["image"]["BLOCK_D"])
            if needs[0]:
                _image_gradient_kernel[(b, rows, parts)](
                    texts, grad_images, *shared, *sizes, c.tiles, WIDEN=_widen(images), **options["image"]
                )
            if needs[1]:
                _text_gradient_kernel[(c.tiles, parts)](
                    images, grad_texts, *shared, *sizes, b, WIDEN=_widen(images), **options["text"]
                )
    return grad_images * scale, grad_texts * scale


# Their values change from batch to batch; specialised (by divisibility by 16), each new kind would compile the kernels
# again in the middle of a training.
_VARYING = ["n_texts", "n_tokens", "tiles", "n_images"]


@triton.jit(do_not_specialize=_VARYING)
def _forward_kernel(
    images, texts, row_ptr, length_ptr, text_ptr, i2t, t2i, image_map, text_map,
    n1, n_texts, n_tokens, d,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, BLOCK_K: tl.constexpr, WIDEN: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    PER_TILE: tl.constexpr = BLOCK_N // SIZE
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.load(row_ptr + columns).to(tl.int64)
    own = tl.load(length_ptr + columns) > 0
    first = tile * BLOCK_N + tl.arange(0, PER_TILE) * SIZE  # the column where each caption begins
    text = tl.load(text_ptr + first).to(tl.int64)
    length = tl.maximum(tl.load(length_ptr + first), 1)
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    best_row = tl.zeros([BLOCK_N], tl.int32)
    total = tl.zeros([PER_TILE], tl.float32)
    for start in range(0, n1, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        loaded = image * n1 + tl.minimum(m, n1 - 1)
        tile_of = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, d, BLOCK_K):
            feature = k + tl.arange(0, BLOCK_K)
            inside = feature < d
            x = tl.load(images + loaded[:, None] * d + feature[None, :], mask=inside[None, :], other=0.0)
            y = tl.load(texts + rows[None, :] * d + feature[:, None], mask=inside[:, None], other=0.0)
            tile_of = _dot(x, y, tile_of, WIDEN)
        by_text = tl.reshape(tile_of, [BLOCK_M, PER_TILE, SIZE])
        value, index = tl.max(by_text, axis=2, return_indices=True)
        index = tl.minimum(index, length[None, :] - 1)
        total += tl.sum(tl.where((m < n1)[:, None], value, 0.0), axis=0)
        where = (image * n_texts + text[None, :]) * n1 + m[:, None]
        if SAVE:
            tl.store(
                image_map + where,
                index.to(image_map.dtype.element_ty),
                mask=(m < n1)[:, None] & (text >= 0)[None, :],
            )
        value, index = tl.max(tile_of, axis=0, return_indices=True)
        better = value > best  # strictly: of equal maxima the lower row stays
        best = tl.where(better, value, best)
        best_row = tl.where(better, tl.minimum(start + index, n1 - 1), best_row)
    if SAVE:
        tl.store(text_map + image * n_tokens + rows, best_row.to(text_map.dtype.element_ty), mask=own)
    summed = tl.sum(tl.reshape(tl.where(own, best, 0.0), [PER_TILE, SIZE]), axis=1)
    tl.store(i2t + image * n_texts + text, total / n1, mask=text >= 0)
    tl.store(t2i + image * n_texts + text, summed / length, mask=text >= 0)


@triton.jit
def _gradient_tile(
    weight_i, weight_t, image_map, text_map, row_ptr, length_ptr, text_ptr,
    image, start, tile, n1, n_texts, n_tokens,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Gradient of the similarity of rows start.. of one image with one tile of columns, [BLOCK_M, BLOCK_N]."""
    column = tl.arange(0, BLOCK_N)
    rows = tl.load(row_ptr + tile * BLOCK_N + column).to(tl.int64)
    own = tl.load(length_ptr + tile * BLOCK_N + column) > 0
    text = tl.load(text_ptr + tile * BLOCK_N + column).to(tl.int64)
    m = start + tl.arange(0, BLOCK_M)
    inside = (m < n1)[:, None] & own[None, :]
    to_text = tl.load(
        image_map + (image * n_texts + text[None, :]) * n1 + m[:, None], mask=inside, other=0
    ).to(tl.int32)
    to_image = tl.load(text_map + image * n_tokens + rows, mask=own, other=0).to(tl.int32)
    of_i = tl.load(weight_i + image * n_texts + text, mask=own, other=0.0)
    of_t = tl.load(weight_t + image * n_texts + text, mask=own, other=0.0)
    result = tl.where(inside & (to_text == (column % SIZE)[None, :]), of_i[None, :], 0.0)
    return result + tl.where(inside & (to_image[None, :] == m[:, None]), of_t[None, :], 0.0)


@triton.jit
def _dot(x, y, total, WIDEN: tl.constexpr):
    if WIDEN:
        x, y = x.to(tl.float32), y.to(tl.float32)
    return tl.dot(x, y, total, input_precision="ieee")


@triton.jit
def _exact_dot(weights, tokens, total, WIDEN: tl.constexpr):
    """total + weights (float32) @ tokens, without rounding the weights to 16 bits."""
    if tokens.dtype == tl.float32:
        return _dot(weights, tokens, total, False)
    high = weights.to(tokens.dtype)
    low = (weights - high.to(tl.float32)).to(tokens.dtype)
    return _dot(low, tokens, _dot(high, tokens, total, WIDEN), WIDEN)


@triton.jit(do_not_specialize=_VARYING)
def _image_gradient_kernel(
    texts, gradient, weight_i, weight_t, image_map, text_map, row_ptr, length_ptr, text_ptr,
    n1, n_texts, n_tokens, d, tiles,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK_M
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for tile in range(0, tiles):
        weights = _gradient_tile(
            weight_i, weight_t, image_map, text_map, row_ptr, length_ptr, text_ptr,
            image, start, tile, n1, n_texts, n_tokens, BLOCK_M, BLOCK_N, SIZE,
        )  # fmt: skip
        rows = tl.load(row_ptr + tile * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
        y = tl.load(texts + rows[:, None] * d + feature[None, :], mask=(feature < d)[None, :], other=0.0)
        total = _exact_dot(weights, y, total, WIDEN)
    m = start + tl.arange(0, BLOCK_M)
    where = gradient + (image * n1 + m)[:, None] * d + feature[None, :]
    inside = (m < n1)[:, None] & (feature < d)[None, :]
    # Launches of the other length classes come before and after this one, never concurrently.
    tl.store(where, tl.load(where, mask=inside, other=0.0) + total, mask=inside)


@triton.jit(do_not_specialize=_VARYING)
def _text_gradient_kernel(
    images, gradient, weight_i, weight_t, image_map, text_map, row_ptr, length_ptr, text_ptr,
    n1, n_texts, n_tokens, d, n_images,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SIZE: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    feature = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i in range(0, n_images):
        image = tl.cast(i, tl.int64)
        for start in range(0, n1, BLOCK_M):
            weights = _gradient_tile(
                weight_i, weight_t, image_map, text_map, row_ptr, length_ptr, text_ptr,
                image, start, tile, n1, n_texts, n_tokens, BLOCK_M, BLOCK_N, SIZE,
            )  # fmt: skip
            m = tl.minimum(start + tl.arange(0, BLOCK_M), n1 - 1)
            x = tl.load(
                images + (image * n1 + m)[:, None] * d + feature[None, :],
                mask=(feature < d)[None, :],
                other=0.0,
            )
            total = _exact_dot(tl.trans(weights), x, total, WIDEN)
    column = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.load(row_ptr + column).to(tl.int64)
    own = tl.load(length_ptr + column) > 0
    where = gradient + rows[:, None] * d + feature[None, :]
    tl.store(where, total, mask=own[:, None] & (feature < d)[None, :])


def _classes(lengths: list[int], device: torch.device) -> list[_Class]:
    per_text = torch.tensor(lengths, dtype=torch.int32)
    starts = per_text.cumsum(0, dtype=torch.int32) - per_text
    # Class of a caption: the first of _CLASSES that holds it.
    classes = torch.bucketize(per_text, torch.tensor(_CLASSES, dtype=torch.int32))
    laid_out = []
    for number, size in enumerate(_CLASSES):
        texts = (classes == number).nonzero()[:, 0]
        if len(texts):
            laid_out.append(_lay_out(size, texts, starts[texts], per_text[texts], device))
    return laid_out


def _lay_out(size: int, texts: Tensor, starts: Tensor, lengths: Tensor, device: torch.device) -> _Class:
    block = max(64, size)  # launch_options' BLOCK_N
    tiles = triton.cdiv(len(texts) * size, block)
    position = torch.arange(size, dtype=torch.int32)[None, :]
    length = lengths[:, None]
    row = starts[:, None] + torch.minimum(position, length - 1)
    columns = tiles * block - len(texts) * size  # filling up the last tile
    return _Class(
        size,
        tiles,
        torch.nn.functional.pad(row.flatten(), (0, columns)).to(device),
        torch.nn.functional.pad(torch.where(position < length, length, 0).flatten(), (0, columns)).to(device),
        torch.nn.functional.pad(texts.int().repeat_interleave(size), (0, columns), value=-1).to(device),
    )


def _widen(tokens: Tensor) -> bool:
    # Triton's interpreter holds bfloat16 as integers and multiplies those; a GPU needs no detour.
    return INTERPRETED and tokens.dtype == torch.bfloat16


def _power_of_two(number: int) -> int:
    """The smallest power of two >= number, and >= 16, which tensor cores want."""
    return max(16, 1 << (number - 1).bit_length())
