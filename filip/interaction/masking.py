"""Handle images with different numbers of tokens, padded to a rectangle, by a mask."""

from __future__ import annotations

import torch
from torch import Tensor

from filip.interaction.backends import Backend
from filip.interaction.packing import Pair, Residuals, Tokens


def check_mask(image_tokens: Tensor, image_mask: Tensor) -> None:
    """Raise ValueError unless ``image_mask`` is boolean [images, n1] with a token in every image.

    The tokens are looked for on a CPU only, since this would wait for a GPU; there the scores of an image without any
    are NaN.
    """
    if image_mask.shape != image_tokens.shape[:2] or image_mask.dtype != torch.bool:
        raise ValueError(
            f"image_mask must be boolean [images, n1] = {list(image_tokens.shape[:2])}, got {image_mask.dtype} "
            f"{list(image_mask.shape)}"
        )
    if image_mask.device != image_tokens.device:
        raise ValueError(
            f"image_mask is on {image_mask.device}, image tokens on {image_tokens.device}; move one"
        )
    if image_mask.device.type == "cpu" and not bool(image_mask.any(dim=1).all()):
        raise ValueError("image_mask leaves an image without a token")


class Masked:
    """A backend for which only the image tokens where ``mask`` [images, n1] is true exist, whatever the others hold.

    i2t sums over image tokens, and a zero adds nothing to the sum. But a zero may be the largest of negative numbers,
    so for t2i the padding repeats the image's first token instead, which changes no maximum. Hence ``module`` runs
    twice, and one of its two results is used each time.
    """

    def __init__(self, module: Backend, mask: Tensor) -> None:
        self.module, self.mask = module, mask
        self.first = mask.int().argmax(dim=1)
        self.images = torch.arange(len(mask), device=mask.device)
        self.share = (
            mask.sum(dim=1, keepdim=True).double() / mask.shape[1]
        )  # integers alone would give float32

    def forward(self, tokens: Tokens, save_for_backward: bool = True) -> tuple[Pair, Residuals]:
        """Compute as any backend does; the residuals are those of the two runs, one after the other."""
        zeroed, repeated = self._filled(tokens)
        (i2t, _), first = self.module.forward(zeroed, save_for_backward)
        (_, t2i), second = self.module.forward(repeated, save_for_backward)
        return (i2t / self.share.to(i2t.dtype), t2i), (*first, *second)

    def backward(
        self, tokens: Tokens, grads: Pair, residuals: Residuals, needs: tuple[bool, bool] = (True, True)
    ) -> Pair:
        """Return the gradients of both inputs; that of the padding is zero.

        The first token also gets the gradients of its copies in the padding.
        """
        half, nothing = len(residuals) // 2, torch.zeros_like(grads[0])
        zeroed, repeated = self._filled(tokens)
        scaled = grads[0] / self.share.to(grads[0].dtype)
        image, text = self.module.backward(zeroed, (scaled, nothing), residuals[:half], needs)
        of_repeated, more_text = self.module.backward(repeated, (nothing, grads[1]), residuals[half:], needs)
        if needs[0]:
            both = torch.where(self.mask[..., None], image + of_repeated, 0)
            both[self.images, self.first] += torch.where(self.mask[..., None], 0, of_repeated).sum(dim=1)
            image = both
        return image, text + more_text

    def _filled(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        mask, image = self.mask[..., None], tokens.image
        first = image[self.images, self.first][:, None]
        zeroed = torch.where(mask, image, torch.zeros_like(first))
        return tokens._replace(image=zeroed), tokens._replace(image=torch.where(mask, image, first))
