"""Share the code of the CLIP sources: map their architecture to our configuration, or refuse it.

No library converts the names of transformers' blocks: timm's ``checkpoint_filter_fn`` (1.0.31) reads the names of
OpenAI, open_clip and DINOv2, open_clip's ``convert_state_dict`` and ``load_big_vision_weights`` (3.3.0) those of
MobileCLIP and big_vision, and transformers (5.24) converts to its own alone. SigLIP weights in open_clip's form come
through ``timm:``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from filip.errors import UserError, first_line
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.pixels import CLIP_MEAN, CLIP_STD
from filip.tokenizer import EOS

# Any *_clip_* name has CLIP's norm_pre, epsilon and patch embedding without bias; its sizes are all given below.
TIMM_NAME = "vit_base_patch32_clip_224"


def image_config(
    image_size: int, patch_size: int, width: int, layers: int, heads: int, activation: str
) -> ImageTowerConfig:
    """Return the configuration of CLIP's vision tower of any size."""
    return ImageTowerConfig(TIMM_NAME, image_size, patch_size, width, layers, heads, activation)


def build_clip(
    config: ModelConfig,
    name: str,
    image: ImageTowerConfig,
    text: TextTowerConfig,
    embed_dim: int,
    state: dict[str, Tensor],
) -> DualEncoder:
    """Build our model of that architecture with ``state``; every token goes through the source's own projections.

    The scale is clamped to ``config.max_logit_scale``, as the optimiser does after each step.
    """
    refuse_vocabulary(name, text.vocab_size)
    model = build_model(replace(config, name=name, image=image, text=text, embed_dim=embed_dim))
    model.load_state_dict(state)
    with torch.no_grad():
        model.logit_scale.clamp_(max=math.log(config.max_logit_scale))
    return model


def refuse_vocabulary(name: str, size: int) -> None:
    if size != EOS + 1:
        raise UserError(
            f"init_from: the text tower of {name} has {size} word vectors; this project's tokenizer is CLIP's, with "
            f"{EOS + 1} tokens"
        )


def refuse_normalisation(name: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a tower trained with another normalisation than CLIP's, which ours is: it would see other pixels."""
    if not all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip([*mean, *std], [*CLIP_MEAN, *CLIP_STD], strict=True)):
        raise UserError(
            f"init_from: {name} normalises its pixels with mean {list(mean)} and deviation {list(std)}; this project's "
            "are CLIP's, and CLIP's patch embedding has no bias that could make up for it"
        )


_BLOCK = {  # ours, theirs; ours of the text tower have no "attn." and "mlp."
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def block_state(state: dict[str, Tensor], ours: str, theirs: str, layers: int, packed: str) -> dict[str, Tensor]:
    """Return the blocks ``theirs.0`` … of ``state`` as ``ours.0`` …; q, k and v become one matrix ``packed``.

    The other parts are called as in timm's ViT if ``packed`` is "attn.qkv", else as in our text tower.
    """
    found = {}
    for i in range(layers):
        for end in ("weight", "bias"):
            parts = [state[f"{theirs}.{i}.self_attn.{part}_proj.{end}"] for part in "qkv"]
            found[f"{ours}.{i}.{packed}.{end}"] = torch.cat(parts)
            for name, source in _BLOCK.items():
                part = name if "." in packed else name.rpartition(".")[2]
                found[f"{ours}.{i}.{part}.{end}"] = state[f"{theirs}.{i}.{source}.{end}"]
    return found


def source_of(name: str, kind: Any, without: tuple[str, ...] = ()) -> Any:
    """Return the model of transformers. Raises UserError if its file lacks weights, but for those ``without`` names."""
    try:
        loaded: Any = kind.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:
        raise UserError(f"init_from=hf:{name}: its weights cannot be loaded: {first_line(error)}") from error
    source, report = loaded
    missing = [key for key in sorted(report["missing_keys"]) if not any(part in key for part in without)]
    if missing:
        raise UserError(f"init_from=hf:{name}: its weights lack {missing[0]} ({len(missing)} tensors in all)")
    return source
