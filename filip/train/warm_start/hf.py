"""``hf:FOLDER`` and ``hf:ID``: a CLIP of Hugging Face's transformers, a SigLIP 2, or the vision tower of a SigLIP."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from filip.errors import UserError, first_line
from filip.extras import how_to_install
from filip.models import DualEncoder, ModelConfig, TextTowerConfig
from filip.train.warm_start import siglip
from filip.train.warm_start.clip import block_state, build_clip, image_config, refuse_normalisation, source_of

_TOWERS = {  # ours, theirs
    "image.trunk.norm_pre": "vision_model.pre_layrnorm",
    "image.trunk.norm": "vision_model.post_layernorm",
    "text.norm": "text_model.final_layer_norm",
}


def from_hf(name: str, config: ModelConfig) -> DualEncoder:
    """Build the model with the weights of a ``CLIPModel``, of a SigLIP 2, or of a SigLIP's vision tower.

    The folder must have its image processor, too.
    """
    try:
        from transformers import AutoConfig, CLIPImageProcessor, CLIPModel
    except ImportError as error:
        raise UserError(f"init_from=hf:… needs transformers: {how_to_install('export')}") from error
    image_only, name = name.endswith(siglip.IMAGE_ONLY), name.removesuffix(siglip.IMAGE_ONLY)
    try:
        known = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise UserError(f"init_from=hf:{name} is not a model of transformers: {first_line(error)}") from error
    if known.model_type in siglip.TYPES:
        return siglip.from_siglip(name, known, config, image_only)
    if known.model_type != "clip" or image_only:
        raise UserError(
            f"init_from=hf:{name} is a model of type {known.model_type!r}; what can be converted is 'clip', "
            "'siglip2', and the vision tower of 'siglip'"
        )
    vision, text = known.vision_config, known.text_config
    for tower in (vision, text):
        _refuse_other_towers(name, tower)
    try:
        processor = CLIPImageProcessor.from_pretrained(name)
    except Exception as error:
        raise UserError(
            f"init_from=hf:{name} has no image processor, so how its pixels are normalised is unknown; save it next to "
            "the model (CLIPImageProcessor().save_pretrained for OpenAI's)"
        ) from error
    refuse_normalisation(name, processor.image_mean, processor.image_std)
    source = source_of(name, CLIPModel)
    return build_clip(
        config,
        name.rstrip("/").rpartition("/")[2],
        image_config(
            vision.image_size,
            vision.patch_size,
            vision.hidden_size,
            vision.num_hidden_layers,
            vision.num_attention_heads,
            vision.hidden_act,
        ),
        TextTowerConfig(
            text.hidden_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.max_position_embeddings,
            text.vocab_size,
            text.hidden_act,
        ),
        known.projection_dim,
        state_from_hf(source.state_dict(), vision.num_hidden_layers, text.num_hidden_layers),
    )


def state_from_hf(state: dict[str, Tensor], image_layers: int, text_layers: int) -> dict[str, Tensor]:
    """Convert ``CLIPModel``'s state dict to ours: q, k and v are packed, positions get their batch dimension."""
    vision, text = "vision_model.embeddings", "text_model.embeddings"
    found = {
        "logit_scale": state["logit_scale"].reshape(1),
        "image.projection.weight": state["visual_projection.weight"],
        "text.projection.weight": state["text_projection.weight"],
        "image.trunk.cls_token": state[f"{vision}.class_embedding"].reshape(1, 1, -1),
        "image.trunk.pos_embed": state[f"{vision}.position_embedding.weight"][None],
        "image.trunk.patch_embed.proj.weight": state[f"{vision}.patch_embedding.weight"],
        "text.token_embedding.weight": state[f"{text}.token_embedding.weight"],
        "text.pos_embed": state[f"{text}.position_embedding.weight"],
    }
    for ours, theirs in _TOWERS.items():
        found |= {f"{ours}.{end}": state[f"{theirs}.{end}"] for end in ("weight", "bias")}
    found |= block_state(state, "image.trunk.blocks", "vision_model.encoder.layers", image_layers, "attn.qkv")
    found |= block_state(state, "text.blocks", "text_model.encoder.layers", text_layers, "qkv")
    return found


def _refuse_other_towers(name: str, tower: Any) -> None:
    expected = {"intermediate_size": 4 * tower.hidden_size, "layer_norm_eps": 1e-5}
    if hasattr(tower, "num_channels"):
        expected["num_channels"] = 3
    for key, value in expected.items():
        if getattr(tower, key) != value:
            raise UserError(
                f"init_from=hf:{name}: {key}={getattr(tower, key)} in its {tower.model_type}, and {value} "
                "in this project's towers"
            )
    if tower.hidden_act not in ("gelu", "quick_gelu"):
        raise UserError(
            f"init_from=hf:{name}: hidden_act={tower.hidden_act!r} in its {tower.model_type}; this project has "
            "gelu and quick_gelu"
        )
