"""Put a convolutional network below the transformer, as in the hybrid ViT: cells of its feature map are the patches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Self

import timm
import torch
from timm.layers import HybridEmbed
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights

from filip.common.errors import UserError
from filip.images.pixels import CLIP_MEAN, CLIP_STD

CPU_IMAGES = 16  # at a time on a CPU: its caches then hold the activations between layers


class Stem(nn.Module):
    """Pixels ``[b, 3, H, W]``, normalised as CLIP's, to the feature map ``[b, num_features, H / stride, W / stride]``.

    A feature map that was computed before (data.feature_cache) is returned as it is.

    The network sees pixels normalised as in its training. Its batch norms keep their statistics and
    weights: with the batch's, the loss would depend on how a batch is divided into ranks and chunks. (timm's
    ``freeze_batch_norm_2d`` computes in float32 under autocast, which takes three times as long on a CPU.)
    """

    factor: Tensor
    shift: Tensor

    def __init__(self, name: str, stride: int) -> None:
        super().__init__()
        try:
            network: Any = timm.create_model(name, features_only=True)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"timm cannot build model.image.stem={name!r} as a feature map: {error}") from error
        strides = network.feature_info.reduction()
        if stride not in strides:
            raise UserError(
                f"model.image.stem_stride={stride}: the feature maps of {name!r} have strides {strides}; choose one"
            )
        network = timm.create_model(name, features_only=True, out_indices=(strides.index(stride),))
        # timm runs and keeps all stages of its EfficientNets, also those above the map that is asked for.
        if stages := getattr(network, "_stage_out_idx", None):
            network.blocks = network.blocks[: max(stages)]
        self.num_features: int = network.feature_info.channels()[-1]
        self.network = network
        pretrained = timm.get_pretrained_cfg(name)
        mean, std = (pretrained.mean, pretrained.std) if pretrained else (CLIP_MEAN, CLIP_STD)
        clip_mean, clip_std, own_mean, own_std = (
            torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD, mean, std)
        )
        self.register_buffer("factor", clip_std / own_std)
        self.register_buffer("shift", (clip_mean - own_mean) / own_std)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def folded(self) -> Self:
        """Return a copy for inference, with the batch norms folded into the convolutions before them.

        Equal up to rounding, and somewhat faster on a CPU.
        """
        copy = deepcopy(self)
        for module in list(copy.network.modules()):
            before: nn.Module | None = None
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                    mean, variance = child.running_mean, child.running_var
                    assert mean is not None and variance is not None
                    of_norm = mean, variance, child.eps, child.weight, child.bias
                    weight, bias = fuse_conv_bn_weights(before.weight, before.bias, *of_norm)
                    before.weight, before.bias = nn.Parameter(weight), nn.Parameter(bias)
                    # timm's norms bring an activation
                    setattr(module, name, getattr(child, "act", nn.Identity()))
                before = child
        return copy

    def fingerprint(self) -> str:
        """Return 12 hex digits that change with the network's weights."""
        weights = hashlib.sha256()
        for name, value in self.state_dict().items():
            weights.update(name.encode() + value.detach().cpu().numpy().tobytes())
        return weights.hexdigest()[:12]

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1] == self.num_features:
            return pixels
        if pixels.device.type == "cpu" and len(pixels) > CPU_IMAGES:
            return torch.cat([self._features(part) for part in pixels.split(CPU_IMAGES)])
        return self._features(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        pixels = pixels * self.factor + self.shift
        features: Tensor = self.network(pixels.contiguous(memory_format=torch.channels_last))[0]
        return features


def stem_layer(name: str, stride: int, cells: int, image_size: int) -> Callable[..., nn.Module]:
    """Return the ``embed_layer`` of a VisionTransformer with a ``patch_size`` of ``cells`` of the feature map.

    Raises UserError if timm lacks the network, or if the patches do not fill the image.
    """
    if image_size % (stride * cells):
        times = "" if cells == 1 else f" times model.image.stem_cells={cells}"
        raise UserError(
            f"model.image.image_size={image_size} is not a multiple of model.image.stem_stride={stride}{times}; pixels "
            "at the border would be seen by part of a cell"
        )
    return partial(HybridEmbed, backbone=Stem(name, stride), feature_size=image_size // stride, feature_ratio=stride)
