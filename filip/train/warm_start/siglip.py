"""``hf:FOLDER`` and ``hf:ID`` of a SigLIP: its vision tower as the image tower; all else is new.

Its text tower has another vocabulary than CLIP's and is left out, and so is the head that pools its patches to one
vector: what every patch is, after the last LayerNorm, is what our projection takes. A NaFlex of SigLIP 2 sees pictures
in any shape; here its tower sees squares, as many patches as it has positions.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from filip.errors import UserError, first_line
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, build_model
from filip.train.warm_start.hf_names import block_state
from filip.train.warm_start.timm import fold_normalisation

TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
# A ViT of timm without [CLS], norm_pre and pooling; its sizes are all given below.
TIMM_NAME = "vit_base_patch16_siglip_gap_224"
_ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
}  # theirs, timm's


def from_siglip(name: str, known: Any, config: ModelConfig) -> DualEncoder:
    """Build the training's model with the vision tower of ``name``, whose configuration is ``known``.

    Its normalisation of pixels is folded into the patch embedding.
    """
    from transformers import AutoImageProcessor, Siglip2VisionModel, SiglipVisionModel

    naflex = known.model_type.startswith("siglip2")
    vision = getattr(known, "vision_config", known)
    if naflex:
        vision.image_size = vision.patch_size * math.isqrt(vision.num_patches)
    image = _image_config(name, vision)
    model = build_model(replace(config, image=image))
    try:
        processor: Any = AutoImageProcessor.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"init_from=hf:{name} has no image processor, so how its pixels are normalised is unknown; save it next to "
            "the model (SiglipImageProcessor().save_pretrained for Google's)"
        ) from error
    try:
        kind: Any = Siglip2VisionModel if naflex else SiglipVisionModel
        loaded: Any = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise UserError(f"init_from=hf:{name}: its weights cannot be loaded: {first_line(error)}") from error
    source, report = loaded
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("head.")):
        raise UserError(f"init_from=hf:{name}: its weights lack {missing[0]} ({len(missing)} tensors in all)")
    trunk: Any = model.image.trunk
    trunk.load_state_dict(_trunk_state(source.state_dict(), vision.num_hidden_layers))
    fold_normalisation(trunk, name, tuple(processor.image_mean), tuple(processor.image_std))
    return model


def _image_config(name: str, vision: Any) -> ImageTowerConfig:
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
