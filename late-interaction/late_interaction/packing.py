"""Define and check the shapes of every backend: packed text, and the pair of similarity matrices."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from late_interaction.lengths import Lengths


class Similarity(NamedTuple):
    """Both directions of an image-text similarity; rows are images, columns texts, in both.

    ``i2t[i, j]`` is s^I, the score of text j for image i; ``t2i[i, j]`` is s^T, the score of image i for
    text j. float32 (float64 for float64 tokens), whatever the dtype of the tokens.
    """

    i2t: Tensor
    t2i: Tensor


class Tokens(NamedTuple):
    """The input of a backend: both sides of one dtype on one device."""

    image: Tensor  # [b, n1, d], or [P, d] with image_lengths: the tokens of all images, one image after the other
    text: Tensor  # [T, d]: the tokens of all texts, one text after the other
    lengths: list[int]  # one per text, all >= 1 with sum T
    image_lengths: list[int] | None = None  # one per image, all >= 1 with sum P; None: all have n1
    temperature: float = 0.0  # of the smooth maximum; 0: the maximum itself
    unit: bool = False  # known to have unit length, up to rounding

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of images and of texts."""
        return len(self.patches), len(self.lengths)

    @property
    def patches(self) -> list[int]:
        """Return the number of tokens of each image."""
        if self.image_lengths is not None:
            return self.image_lengths
        return [self.image.shape[1]] * len(self.image)

    @property
    def longest_image(self) -> int:
        return self.image.shape[1] if self.image_lengths is None else max(self.image_lengths)

    def rounded(self, dtype: torch.dtype) -> Tokens:
        return self._replace(image=self.image.to(dtype), text=self.text.to(dtype))


Pair = tuple[Tensor, Tensor]  # one tensor for each direction, or for each side
Residuals = tuple[Tensor, ...]  # left by a backend's forward for its backward


def check_are_tensors(text_lengths: Tensor, image_lengths: Tensor | None = None) -> None:
    """Raise ValueError if lengths are a list."""
    for name, given in (("text_lengths", text_lengths), ("image_lengths", image_lengths)):
        if not isinstance(given, Tensor) and (given is not None or name == "text_lengths"):
            raise ValueError(f"{name} must be a tensor of integers, got {type(given).__name__}")


def pack(
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_lengths: Tensor,
    image_mask: Tensor | None = None,
    image_lengths: Tensor | None = None,
    temperature: float = 0.0,
) -> Tokens:
    """Return both sides without padding. Differentiable. Raises ValueError unless they fit together.

    Texts are packed, [T, d] with lengths [texts], or padded, [texts, n2, d] with lengths or a mask [texts, n2].
    """
    image_tokens, image_lengths = pack_images(image_tokens, image_mask, image_lengths)
    if text_tokens.dim() == 3:
        mask = text_mask(text_tokens, text_lengths)
        text_tokens, text_lengths = text_tokens[mask], mask.sum(dim=1)
    lengths = check_tokens(image_tokens, text_tokens, text_lengths, image_lengths)
    return Tokens(image_tokens, text_tokens, *lengths, temperature)


def check_tokens(
    image_tokens: Tensor, text_tokens: Tensor, text_lengths: Tensor, image_lengths: Tensor | None = None
) -> tuple[Lengths, Lengths | None]:
    """Raise ValueError unless they describe a non-empty late interaction; return both lengths as ints.

    ``image_tokens`` [b, n1, d], ``text_tokens`` [T, d] packed, ``text_lengths`` [t] with sum T, all >= 1. With
    ``image_lengths`` [b] the images are packed like the texts.
    """
    check_are_tensors(text_lengths, image_lengths)
    packed = image_lengths is not None
    if image_tokens.dim() != (2 if packed else 3) or text_tokens.dim() != 2 or text_lengths.dim() != 1:
        images = "[P, d] (packed) with image_lengths [images]" if packed else "[images, n1, d]"
        raise ValueError(
            f"late interaction takes image_tokens {images}, text_tokens [T, d] (packed) and "
            f"text_lengths [texts]; got {list(image_tokens.shape)}, {list(text_tokens.shape)} and "
            f"{list(text_lengths.shape)}"
        )
    count = len(image_tokens) if image_lengths is None else len(image_lengths)
    if count == 0 or text_lengths.shape[0] == 0:
        raise ValueError(
            f"empty batch: {count} images and {text_lengths.shape[0]} texts; "
            "late interaction needs at least one of each"
        )
    if 0 in image_tokens.shape:
        raise ValueError(f"image_tokens {list(image_tokens.shape)} has no tokens or no features")
    if image_tokens.shape[-1] != text_tokens.shape[1]:
        raise ValueError(
            f"image tokens have {image_tokens.shape[-1]} features and text tokens {text_tokens.shape[1]}; "
            "both must come from the same embedding space"
        )
    if image_tokens.device != text_tokens.device:
        raise ValueError(
            f"image tokens are on {image_tokens.device}, text tokens on {text_tokens.device}; move one of them"
        )
    if not (image_tokens.is_floating_point() and text_tokens.is_floating_point()):
        raise ValueError(f"tokens must be floating point, got {image_tokens.dtype} and {text_tokens.dtype}")
    of_images = None if image_lengths is None else _check_lengths("image", image_tokens, image_lengths)
    return _check_lengths("text", text_tokens, text_lengths), of_images


def longest_of(text_lengths: list[int], image_lengths: list[int] | None = None) -> int:
    """Return the number of tokens of the longest item; images without lengths do not count."""
    return max(*text_lengths, *(image_lengths or ()), 1)


def _check_lengths(side: str, rows: Tensor, given: Tensor) -> Lengths:
    """Raise ValueError unless ``given`` cut the packed ``rows`` of a side; return them as ints."""
    name = f"{side}_lengths"
    if given.dim() != 1 or given.is_floating_point() or given.dtype == torch.bool:
        raise ValueError(f"{name} must be integers, one per {side}, got {given.dtype} {list(given.shape)}")
    lengths = Lengths(given.tolist())
    if len(lengths) > 1 and lengths[0] == 0 and lengths[-1] == len(rows) > 0 and lengths == sorted(lengths):
        raise ValueError(
            f"{name} {_shortened(lengths)} looks like cumulative lengths (cu_seqlens); pass cu_seqlens.diff()"
        )
    check_each_has_a_token(side, lengths)
    if sum(lengths) != len(rows):
        raise ValueError(
            f"{name} sum to {sum(lengths)} but {side}_tokens has {len(rows)} rows; "
            f"{side}_tokens must hold the valid tokens only, one {side} after the other (see pack_tokens)"
        )
    return lengths


def check_each_has_a_token(side: str, lengths: list[int]) -> None:
    """Raise ValueError if a length is below 1."""
    if lengths and min(lengths) < 1:
        raise ValueError(
            f"every {side} needs at least one token, got {side}_lengths with minimum {min(lengths)} "
            f"({lengths.count(0)} of {len(lengths)} have none)"
        )


def _shortened(lengths: list[int]) -> str:
    shown = ", ".join(map(str, lengths[:4]))
    return f"[{shown}, ...]" if len(lengths) > 4 else f"[{shown}]"


def pack_tokens(padded: Tensor, lengths: Tensor) -> Tensor:
    """Drop the padding: ``padded`` [t, n2, d] and ``lengths`` [t] to [sum(lengths), d]. Differentiable.

    Values at or beyond a text's length are never read into the result, so they may even be NaN.
    Raises ValueError when a length exceeds n2.
    """
    return padded[text_mask(padded, lengths)]


def text_mask(padded: Tensor, lengths: Tensor) -> Tensor:
    """Return which tokens of ``padded`` [t, n2, d] exist, [t, n2], from ``lengths`` [t] or a mask, returned as is.

    In a mask a text's tokens may be anywhere. Raises ValueError if they do not fit, or a text has no token.
    """
    shape = padded.shape[:2] if lengths.dtype == torch.bool else padded.shape[:1]
    if padded.dim() != 3 or lengths.shape != shape or lengths.is_floating_point():
        raise ValueError(
            "expected padded tokens [texts, n2, d] and whole lengths [texts] or a boolean mask [texts, n2], such as "
            f"attention_mask.bool(); got {list(padded.shape)} and {lengths.dtype} {list(lengths.shape)}"
        )
    if lengths.dtype == torch.bool:
        check_each_has_a_token("text", lengths.sum(dim=1).tolist())
        return lengths.to(padded.device)
    check_each_has_a_token("text", lengths.tolist())
    if lengths.numel() and int(lengths.max()) > padded.shape[1]:
        raise ValueError(f"a text of {int(lengths.max())} tokens does not fit in {padded.shape[1]} positions")
    return torch.arange(padded.shape[1], device=padded.device) < lengths.to(padded.device)[:, None]


def pack_images(
    image_tokens: Tensor, image_mask: Tensor | None, image_lengths: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Drop the image tokens [images, n1, d] that a boolean ``image_mask`` [images, n1] excludes; return the lengths.

    Without a mask, or with one that excludes nothing, the arguments are returned. The host waits for a mask on a GPU.
    Raises ValueError for a mask that does not fit, or leaves an image without a token.
    """
    if image_mask is None:
        return image_tokens, image_lengths
    if image_lengths is not None:
        raise ValueError(
            "image_lengths are for packed image tokens [P, d], image_mask for padded ones [images, n1, d]; give one"
        )
    check_mask(image_tokens, image_mask)
    lengths = image_mask.sum(dim=1).cpu()
    if not len(lengths) or int(lengths.min()) == image_mask.shape[1]:
        return image_tokens, None
    return image_tokens[image_mask], lengths


def check_mask(image_tokens: Tensor, image_mask: Tensor) -> None:
    """Raise ValueError unless ``image_mask`` is boolean [images, n1] with a token in every image."""
    if image_mask.shape != image_tokens.shape[:2] or image_mask.dtype != torch.bool:
        raise ValueError(
            f"image_mask must be boolean [images, n1] = {list(image_tokens.shape[:2])}, got {image_mask.dtype} "
            f"{list(image_mask.shape)}"
        )
    if image_mask.device != image_tokens.device:
        raise ValueError(f"image_mask is on {image_mask.device}, image tokens on {image_tokens.device}; move one")
    if not bool(image_mask.any(dim=1).all()):
        raise ValueError("image_mask leaves an image without a token")


# The largest weight of an item after scaling: where an entry wins both ways two are added, and float16 ends at 65,504.
LARGEST_WEIGHT = 2.0**14


def scaled_by_item(weights: Pair, dim: int) -> tuple[Pair, Tensor]:
    """Scale both directions' weights [images, texts] so that 16 bits hold them: item by item along ``dim``.

    Return the scaled weights and the scales, by which a gradient is multiplied in the end.
    """
    largest = torch.maximum(weights[0].abs(), weights[1].abs()).amax(dim=dim, keepdim=True)
    scale = (largest / LARGEST_WEIGHT).clamp_min(torch.finfo(torch.float32).tiny)
    return (weights[0] / scale, weights[1] / scale), scale


def scale_of_rows(scale: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """Return the scale of every row [rows, 1], from the ``scale`` of each item and its number of ``tokens``."""
    return scale.flatten().repeat_interleave(tokens, output_size=rows)[:, None]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype, at least float32, of similarities, soft-max and loss.

    16-bit tokens are multiplied exactly in it.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply ``left`` [m, d] with ``right`` [n, d] transposed: [m, n] in the accumulation dtype.

    Nothing is rounded to 16 bits. Widening 16-bit factors first is exact; on GPUs the tensor cores take them as they
    are and sum in float32. Factors of float32 are not rounded either, whatever
    ``torch.set_float32_matmul_precision`` says.
    """
    wide = accumulation_dtype(left.dtype)
    if left.dtype != wide and left.device.type == "cuda" and _mixed_product_runs(left.device, left.dtype):
        return torch.mm(left, right.T, out_dtype=wide)
    with full_precision(left.device):
        return left.to(wide) @ right.to(wide).T


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Let float32 be multiplied without TF32 or bfloat16 inside the block."""
    owner: Any = {"cuda": torch.backends.cuda, "cpu": torch.backends.mkldnn}.get(device.type)
    settings = getattr(owner, "matmul", None)
    name, full = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name, full)  # the second name is that of PyTorch before 2.9
    if before == full:
        yield
        return
    setattr(settings, name, full)
    try:
        yield
    finally:
        setattr(settings, name, before)


@functools.cache
def _mixed_product_runs(device: torch.device, dtype: torch.dtype) -> bool:
    probe = torch.ones(16, 16, device=device, dtype=dtype)
    try:
        return torch.mm(probe, probe, out_dtype=torch.float32).dtype == torch.float32
    except (TypeError, RuntimeError):  # PyTorch before 2.8 has no out_dtype; some GPUs lack a kernel
        return False
