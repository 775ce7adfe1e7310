"""``open_clip:ARCH:TAG`` and ``open_clip:ARCH:FILE[:ACTIVATION]``: any CLIP of open_clip with plain transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

import torch

from filip.common.errors import UserError, first_line
from filip.eval.encoders.open_clip import activation_of, split_name
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.models.open_clip_names import from_open_clip as state_from_open_clip
from filip.text.tokenizer import EOS

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
        raise UserError("init_from=open_clip:… needs `pip install open_clip_torch`") from error
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
    _refuse_normalisation(f"{architecture}:{weights}", preprocess["mean"], preprocess["std"])
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


def _refuse_normalisation(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a tower trained with another normalisation than CLIP's, which ours is: it would see other pixels."""
    if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip([*mean, *std], [*CLIP_MEAN, *CLIP_STD], strict=True)):
        raise UserError(
            f"init_from: {name} normalises its pixels with mean {list(mean)} and deviation {list(std)}; this project's "
            "are CLIP's, and CLIP's patch embedding has no bias that could make up for it"
        )


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
