"""Define the image encoder: a timm ViT with all tokens projected, plus resizing of its position embeddings."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import skip_init

from filip.common.errors import UserError, first_line
from filip.models.config import ImageTowerConfig
from filip.models.stem import Stem, stem_layer


class ImageTower(nn.Module):
    """Image encoder: pixels to embeddings, not yet normalised.

    ``forward(pixels [b, 3, H, W])`` returns all tokens ``[b, prefix + patches, embed_dim]``, prefix tokens
    ([CLS], registers) first.
    """

    def __init__(self, config: ImageTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.trunk, self.image_size = _create_trunk(config), config.image_size
        self.projection = nn.Linear(self.trunk.embed_dim, embed_dim, bias=False)
        if config.init == "clip":
            _init_as_clip(self.trunk)
            nn.init.normal_(self.projection.weight, std=self.trunk.embed_dim**-0.5)

    @property
    def prefix_tokens(self) -> int:
        """Return how many tokens come before the patches."""
        return self.trunk.num_prefix_tokens

    @property
    def patch_embed(self) -> Any:
        """Return the layer that makes patches of pixels."""
        return self.trunk.patch_embed

    @property
    def has_cls(self) -> bool:
        return self.trunk.cls_token is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of patches down and across of a square."""
        rows, columns = self.patch_size
        return self.image_size // rows, self.image_size // columns

    @property
    def patch_size(self) -> tuple[int, int]:
        """Return height and width of a patch in pixels."""
        height, width = self.patch_embed.feat_ratio(as_scalar=False)
        return int(height), int(width)

    @property
    def stem(self) -> Stem | None:
        """Return the convolutional network below the transformer, if there is one."""
        backbone = getattr(self.patch_embed, "backbone", None)
        assert backbone is None or isinstance(backbone, Stem)
        return backbone

    @property
    def width(self) -> int:
        """Return the features of a token before the projection."""
        return int(self.trunk.embed_dim)

    @property
    def depth(self) -> int:
        """Return the number of transformer blocks."""
        return len(self.trunk.blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        # The trunk is *called* (not .forward_features) so that ZeRO-3's hooks gather its own parameters;
        # global_pool="" and num_classes=0 make that call return every token after the final LayerNorm.
        return self.projection(self.trunk(pixels))

    def resize(self, image_size: int) -> None:
        """Change the input side in place: the position embeddings are interpolated (bicubic, as timm's)."""
        patch_rows, patch_columns = self.patch_size
        if image_size % patch_rows or image_size % patch_columns:
            below = image_size - image_size % patch_rows
            raise UserError(
                f"image size {image_size} is not a multiple of the patch size {patch_rows}; "
                f"choose {below} or {below + patch_rows}"
            )
        self.image_size = image_size
        self.trunk.set_input_size(img_size=(image_size, image_size))


_CHOICE = (
    "Choose a VisionTransformer or an Eva (DINOv3, PE-Core), which give patch tokens: most of timm.list_models('vit_*')"
)


def _create_trunk(config: ImageTowerConfig) -> VisionTransformer | Eva:
    arguments: dict[str, Any] = dict(config.options)
    sizes = {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.layers,
        "num_heads": config.heads,
        "act_layer": config.activation,
    }
    arguments |= {name: value for name, value in sizes.items() if value is not None}
    if is_model_in_modules(config.timm.partition(".")[0], ["eva"]) and config.activation == "gelu":
        del arguments["act_layer"]  # DINOv3 and PE-Core bring theirs
    if config.stem is not None:
        stem = stem_layer(config.stem, config.stem_stride, config.stem_cells, config.image_size)
        arguments |= {"patch_size": config.stem_cells, "embed_layer": stem}
    try:
        trunk = timm.create_model(config.timm, img_size=config.image_size, num_classes=0, global_pool="", **arguments)
    except (RuntimeError, TypeError, AssertionError, ValueError) as error:
        given = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise UserError(
            f"timm cannot build model.image.timm={config.timm!r} with {given}: {first_line(error)}. {_CHOICE}"
        ) from error
    if not isinstance(trunk, VisionTransformer | Eva):
        raise UserError(f"model.image.timm={config.timm!r} is a {type(trunk).__name__}. {_CHOICE}")
    patches: Any = trunk.patch_embed
    rows, columns = patches.feat_ratio(as_scalar=False)
    if config.image_size % rows or config.image_size % columns:
        raise UserError(
            f"model.image.image_size={config.image_size} is not a multiple of the patch size {rows}; "
            "pixels at the border would be dropped"
        )
    if isinstance(patches.proj, nn.Conv2d):
        patches.proj = _PatchProjection.of(patches.proj)
    return trunk


class _PatchProjection(nn.Conv2d):
    """The convolution that makes patches; its gradient in float16 is too slow on a CPU.

    There it goes through float32, which takes a fortieth of the time.
    """

    @classmethod
    def of(cls, layer: nn.Conv2d) -> _PatchProjection:
        """Return a layer with the parameters of another one, drawing no random numbers."""
        with_bias = layer.bias is not None
        patches = skip_init(cls, layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, bias=with_bias)
        patches.weight, patches.bias = layer.weight, layer.bias
        return patches

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.dtype != torch.float16 or pixels.device.type != "cpu":
            return super().forward(pixels)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(pixels.float(), self.weight.float(), bias).to(pixels.dtype)


@torch.no_grad()
def _init_as_clip(trunk: VisionTransformer | Eva) -> None:
    """Initialise as CLIP's vision tower: embeddings from N(0, 1/width), the rest as torch's layers do.

    CLIP's GPT-2 style scaling of the blocks is applied to its text tower only. torch's MultiheadAttention
    draws the joint q/k/v weight by Xavier over its joint shape and sets the attention biases to zero.
    """
    std = trunk.embed_dim**-0.5
    for parameter in (trunk.cls_token, trunk.reg_token, trunk.pos_embed):
        if parameter is not None:
            nn.init.normal_(parameter, std=std)
    for name, module in trunk.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) and ".backbone." not in name:
            module.reset_parameters()
    for name, layer in trunk.blocks.named_modules():
        if not isinstance(layer, nn.Linear) or ".attn." not in name:
            continue
        if name.endswith("qkv"):
            nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
