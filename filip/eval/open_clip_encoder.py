"""Models of open_clip, as its users score them: own tokenizer, transform, normalisation and activation.

The activation is not part of the weights, and open_clip only warns when it does not fit: ``ViT-B-32`` with the tag
``openai`` is built with GELU, while those weights were trained with QuickGELU, and silently loses accuracy. So
the activation is looked up by tag here, and must be stated for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from filip.errors import UserError

ACTIVATIONS = ("gelu", "quickgelu")


class OpenClipEncoder:
    """A pooled model.

    weights: one of open_clip's tags, a local file, or None for its initialisation. activation: "gelu" or
    "quickgelu"; None: the tag's, or the architecture's where there are no weights.
    Raises UserError for an unknown architecture or tag, and for a file without an activation.
    """

    def __init__(
        self,
        architecture: str,
        weights: str | None,
        image_size: int | None,
        device: str = "cpu",
        activation: str | None = None,
    ):
        try:
            import open_clip
        except ImportError as error:
            raise UserError("open_clip: models need `pip install open_clip_torch`") from error
        if architecture not in open_clip.list_models():
            raise UserError(
                f"open_clip has no architecture {architecture!r}; `python -c 'import open_clip; "
                "print(open_clip.list_models())'` lists them"
            )
        activation = activation_of(architecture, weights, activation)
        extra = {} if image_size is None else {"force_image_size": image_size}
        model, _, transform = open_clip.create_model_and_transforms(
            architecture,
            pretrained=weights,
            device=device,
            force_quick_gelu=activation == "quickgelu",
            **extra,
        )
        self.model: Any = model.eval()
        self.name = f"open_clip {architecture}" + (f" {Path(weights).stem}" if weights else " (no weights)")
        self.details = {"activation": activation}
        self.device = device
        self.token_wise, self.grid = False, (0, 0)
        size = model.visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        self.transform: Callable[[Image.Image], Tensor] = transform
        self.tokenizer = open_clip.get_tokenizer(architecture)

    @classmethod
    def from_name(cls, model: str, image_size: int | None, device: str) -> OpenClipEncoder:
        """From ``open_clip:ARCH[:WEIGHTS[:ACTIVATION]]``."""
        architecture, weights, activation = split_name(model.removeprefix("open_clip:"))
        return cls(architecture, weights, image_size, device, activation)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        return F.normalize(
            self.model.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1
        ), None

    @torch.inference_mode()
    def probe_features(self, pixels: Tensor) -> Tensor:
        # open_clip hands out one vector per image, whatever the tower; probes of CLIP use that.
        return self.model.encode_image(pixels.to(self.device)).float().cpu()

    def patches(self, pixels: Tensor) -> Tensor:
        raise UserError(_NO_TOKENS)

    def tokens(self, text: str) -> list[str]:
        raise UserError(_NO_TOKENS)

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        raise UserError(_NO_TOKENS)


def split_name(name: str) -> tuple[str, str | None, str | None]:
    """``ARCH[:WEIGHTS[:ACTIVATION]]`` in its parts; None for what is not there."""
    architecture, _, weights = name.partition(":")
    activation = None
    if weights.rpartition(":")[2] in ACTIVATIONS:
        weights, _, activation = weights.rpartition(":")
    return architecture, weights or None, activation


def activation_of(architecture: str, weights: str | None, stated: str | None) -> str:
    """ "gelu" or "quickgelu": as stated, or as the tag or (without weights) the architecture says.

    Raises UserError if nothing says it, or if what is stated contradicts the architecture.
    """
    import open_clip

    built_in = "quickgelu" if (open_clip.get_model_config(architecture) or {}).get("quick_gelu") else "gelu"
    if weights is None:
        found = stated or built_in
    elif stated is not None:
        found = stated
    elif weights in open_clip.list_pretrained_tags_by_model(architecture):
        found = (
            "quickgelu" if open_clip.get_pretrained_cfg(architecture, weights).get("quick_gelu") else "gelu"
        )
    elif not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)) or "none"
        raise UserError(
            f"open_clip:{architecture}:{weights} is neither a file nor a tag of that architecture (its tags: {tags})"
        )
    elif built_in == "quickgelu":
        found = built_in
    else:
        name = f"open_clip:{architecture}:{weights}"
        raise UserError(
            f"the file {weights} does not say which activation its weights were trained with: give {name}:quickgelu "
            f"(OpenAI's, MetaCLIP's, DFN's, LAION-400M's) or {name}:gelu (most others)"
        )
    if built_in == "quickgelu" and found == "gelu":
        raise UserError(
            f"{architecture} is built with QuickGELU; for weights with GELU take the plain architecture"
        )
    return found


_NO_TOKENS = "word-patch alignment is for models of this project: open_clip's have no projection for tokens"
