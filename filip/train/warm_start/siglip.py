"""``hf:FOLDER`` and ``hf:ID`` of a SigLIP 2, both towers, or with ``:image`` the vision tower of any SigLIP.

What every patch and token is after the last LayerNorm is what our projections take, which are new: the source's heads
make one vector a side. The text tower comes with its vocabulary, Gemma's, as its tokenizer.json, and reads its padding.
SigLIP 1 has no tokenizer.json (its texts are cleaned in Python) and comes with its vision tower alone. A NaFlex of
SigLIP 2 sees pictures in any shape; here its tower sees squares, as many patches as it has positions, unless
``model.image.options={use_naflex: true}`` asks for timm's NaFlexVit.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from timm.models.naflexvit import checkpoint_filter_fn
from torch import Tensor

from filip.errors import UserError, first_line
from filip.files import digest
from filip.json_tokenizer import JsonTokenizer
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.train.warm_start.clip import block_state, source_of
from filip.train.warm_start.timm import fold_normalisation

IMAGE_ONLY = ":image"  # behind the name: the vision tower alone
TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
LEFT_OUT = ("head.", "logit_")  # weights of the source that we do not take
# A ViT of timm without [CLS], norm_pre and pooling; its sizes are all given below.
TIMM_NAME = "vit_base_patch16_siglip_gap_224"
# theirs, timm's and ours
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}


def from_siglip(name: str, known: Any, config: ModelConfig, image_only: bool = False) -> DualEncoder:
    """Build the training's model with the towers of ``name``, whose configuration is ``known``.

    The normalisation of pixels is folded into the patch embedding. ``image_only``: the text tower is the training's.
    """
    vision, text = getattr(known, "vision_config", known), getattr(known, "text_config", None)
    naflex = known.model_type.startswith("siglip2")
    if naflex:
        vision.image_size = vision.patch_size * math.isqrt(vision.num_patches)
    config = replace(config, image=_image_config(name, vision, config.image.options.get("use_naflex", False)))
    if text is None or image_only:
        from transformers import Siglip2VisionModel, SiglipVisionModel

        model = build_model(config)
        source = source_of(name, Siglip2VisionModel if naflex else SiglipVisionModel, LEFT_OUT)
        _load_image(model, name, vision, source)
        return model
    from transformers import AutoModel

    tokenizer, padding = _tokenizer(name)
    model = build_model(replace(config, text=_text_config(name, text, tokenizer, padding)))
    model.json_tokenizer, source = tokenizer, source_of(name, AutoModel, LEFT_OUT)
    _load_text(model, source.text_model.state_dict(), text.num_hidden_layers)
    _load_image(model, name, vision, source.vision_model)
    return model


def _load_image(model: DualEncoder, name: str, vision: Any, source: Any) -> None:
    from transformers import AutoImageProcessor

    try:
        processor: Any = AutoImageProcessor.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"init_from=hf:{name} has no image processor, so how its pixels are normalised is unknown; save it next to "
            "the model (SiglipImageProcessor().save_pretrained for Google's)"
        ) from error
    trunk: Any = model.image.trunk
    converted = _trunk_state(source.state_dict(), vision.num_hidden_layers)
    trunk.load_state_dict(checkpoint_filter_fn(converted, trunk) if model.image.takes_shapes else converted)
    fold_normalisation(trunk, name, tuple(processor.image_mean), tuple(processor.image_std))


def _load_text(model: DualEncoder, state: dict[str, Tensor], layers: int) -> None:
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "pos_embed": state["embeddings.position_embedding.weight"],
        "norm.weight": state["final_layer_norm.weight"],
        "norm.bias": state["final_layer_norm.bias"],
        "projection.weight": model.text.projection.weight,
    }
    model.text.load_state_dict(found | block_state(state, "blocks", "encoder.layers", layers, packed="qkv"))


def _tokenizer(name: str) -> tuple[JsonTokenizer, int]:
    """Return the tokenizer as transformers applies it, lower case included, and the id of its padding."""
    from transformers import AutoTokenizer

    alone = f"init_from=hf:{name}{IMAGE_ONLY} takes its vision tower alone"
    try:
        found: Any = AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"init_from=hf:{name}: the tokenizer of its text tower cannot be loaded: {first_line(error)}; {alone}"
        ) from error
    if getattr(found, "backend_tokenizer", None) is None or found.pad_token_id is None:
        raise UserError(
            f"init_from=hf:{name}: its {type(found).__name__} cannot be written as a tokenizer.json with padding, "
            f"which a training of its text tower needs; {alone}"
        )
    if found.padding_side != "right":
        raise UserError(
            f"init_from=hf:{name} pads its texts on the {found.padding_side}, and this project's towers on the right; "
            f"{alone}"
        )
    return JsonTokenizer(found.backend_tokenizer.to_str(), f"hf:{name}"), int(found.pad_token_id)


def _text_config(name: str, text: Any, tokenizer: JsonTokenizer, padding: int) -> TextTowerConfig:
    if text.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"init_from=hf:{name}: hidden_act={text.hidden_act!r} in its text tower; this project can build "
            f"{', '.join(_ACTIVATIONS)}; init_from=hf:{name}{IMAGE_ONLY} takes its vision tower alone"
        )
    return TextTowerConfig(
        text.hidden_size,
        text.num_hidden_layers,
        text.num_attention_heads,
        text.max_position_embeddings,
        text.vocab_size,
        _ACTIVATIONS[text.hidden_act],
        tokenizer=f"sha256:{digest(tokenizer.json)}",  # its content, since the folder may move
        padding=padding,
        mlp_width=text.intermediate_size,
        norm_eps=text.layer_norm_eps,
    )


def _image_config(name: str, vision: Any, own_shapes: bool) -> ImageTowerConfig:
    if vision.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"init_from=hf:{name}: hidden_act={vision.hidden_act!r} in its vision tower; this project can build "
            f"{', '.join(_ACTIVATIONS)}"
        )
    for key, expected in (("layer_norm_eps", 1e-6), ("num_channels", 3)):
        if getattr(vision, key) != expected:
            raise UserError(
                f"init_from=hf:{name}: {key}={getattr(vision, key)} in its vision tower, and {expected} in timm's ViT"
            )
    options = {
        "act_layer": _ACTIVATIONS[vision.hidden_act],
        # timm rounds width * mlp_ratio down
        "mlp_ratio": (vision.intermediate_size + 0.5) / vision.hidden_size,
    }
    if own_shapes:  # positions are interpolated as transformers' NaFlex does
        options |= {"use_naflex": True, "pos_embed_interp_mode": "bilinear"}
    return ImageTowerConfig(
        TIMM_NAME,
        vision.image_size,
        vision.patch_size,
        vision.hidden_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        activation=None,
        options=options,
    )


def _trunk_state(state: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Convert ``SiglipVisionModel``'s state dict to that of timm's ViT; the pooling head is left out."""
    patches = state["embeddings.patch_embedding.weight"]
    if patches.ndim == 2:  # NaFlex: a linear layer of the values of a patch, row by row, channels last
        side = math.isqrt(patches.shape[1] // 3)
        patches = patches.view(-1, side, side, 3).permute(0, 3, 1, 2).contiguous()
    found = {
        "pos_embed": state["embeddings.position_embedding.weight"][None],
        "patch_embed.proj.weight": patches,
        "patch_embed.proj.bias": state["embeddings.patch_embedding.bias"],
        "norm.weight": state["post_layernorm.weight"],
        "norm.bias": state["post_layernorm.bias"],
    }
    return found | block_state(state, "blocks", "encoder.layers", layers, packed="attn.qkv")
