"""Configuration of a dual encoder, which run folders and saved models hold as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import yaml

from filip.cli.option import check_values, option, read_settings
from filip.common.errors import UserError

INTERACTIONS = ("token_wise", "pooled")
ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")
INITIALISATIONS = ("clip", "timm")
POOLINGS = ("ends", "mean", "attention", "heads", "relu", "bilinear")


@dataclass
class ImageTowerConfig:
    """A vision transformer from timm, by name, with optional changes of its size.

    CLIP's ViT and timm's plain ViT (``vit_base_patch32_224``) differ in four places; timm's ``*_clip_*``
    names have CLIP's version of the first three, which the presets use:

    - CLIP normalises once more *before* the blocks (``norm_pre``), timm does not;
    - CLIP's patch embedding has no bias, timm's has one;
    - CLIP's LayerNorm epsilon is 1e-5, timm's 1e-6;
    - OpenAI's CLIP uses QuickGELU, ``x * sigmoid(1.702 x)``; timm and open_clip's own trainings use GELU.
      Ours is GELU (one fused kernel, less memory); ``activation: quick_gelu`` gives OpenAI's.
    """

    timm: str = option("vit_base_patch32_clip_224", "any ViT of timm, by name")
    image_size: int = option(224, "side of the square input in px", at_least=1)
    patch_size: int | None = option(None, "px; null = as the timm name says", at_least=1)
    width: int | None = option(None, "channels; null = as the timm name says", at_least=1)
    layers: int | None = option(None, "blocks; null = as the timm name says", at_least=1)
    heads: int | None = option(None, "attention heads; null = as the timm name says", at_least=1)
    activation: str | None = option(
        "gelu", "of the blocks; null = as the timm name says", choices=ACTIVATIONS, typed=False
    )
    init: str = option(
        "clip",
        "clip = as CLIP's code initialises its vision tower; timm = timm's",
        choices=INITIALISATIONS,
        typed=False,
    )
    stem: str | None = option(
        None, "convolutional network of timm below the transformer: the cells of its feature map are the patches"
    )
    stem_stride: int = option(16, "px per cell of the stem's feature map", at_least=1, typed=False)
    stem_cells: int = option(
        1, "cells of the feature map along a side of a patch: 2 makes a patch of 2 x 2", at_least=1, typed=False
    )
    options: dict[str, Any] = option({}, "further arguments of the timm model, e.g. {reg_tokens: 4}")


@dataclass
class TextTowerConfig:
    """CLIP's text tower, a causal, pre-norm transformer like GPT-2's, or SigLIP's, which reads its padding, too."""

    width: int = option(512, "channels", at_least=1)
    layers: int = option(12, "blocks", at_least=1)
    heads: int = option(8, "attention heads; width must be divisible by it", at_least=1)
    context_length: int = option(77, "longest caption in tokens, [BOS] and [EOS] included", at_least=2)
    vocab_size: int = option(49408, "word vectors; CLIP's BPE has 49408 tokens", at_least=1, typed=False)
    activation: str = option("gelu", "of the blocks", choices=ACTIVATIONS, typed=False)
    tokenizer: str | None = option(
        None,
        "a tokenizer.json of Hugging Face's tokenizers, which run folder and saved model then carry; null = CLIP's BPE",
    )
    padding: int | None = option(
        None,
        "id of the padding up to context_length, for a tower that looks both ways and reads it, as SigLIP's; null = "
        "causal and blind to padding, as CLIP's",
        at_least=0,
        typed=False,
    )
    mlp_width: int | None = option(None, "hidden channels of a block; null = 4 x width", at_least=1, typed=False)
    norm_eps: float = option(1e-5, "epsilon in the LayerNorms; SigLIP's is 1e-6", above=0, typed=False)

    @property
    def like_clip(self) -> bool:
        """Return whether formats and pages that hold CLIP's text tower and vocabulary alone can hold this one."""
        same = TextTowerConfig(self.width, self.layers, self.heads, self.context_length, self.vocab_size)
        return self.activation != "gelu_tanh" and replace(self, activation=same.activation) == same


@dataclass
class ModelConfig:
    """FILIP (``interaction: token_wise``) or CLIP with the same encoders (``interaction: pooled``)."""

    name: str = option("base", "shown in tables", typed=False)
    image: ImageTowerConfig = option(ImageTowerConfig(), "the vision transformer")
    text: TextTowerConfig = option(TextTowerConfig(), "the text transformer")
    embed_dim: int = option(256, "channels of each token (or pooled) embedding", at_least=1)
    interaction: str = option(
        "token_wise",
        "token_wise = all patches and words; pooled = one vector each, the CLIP baseline",
        choices=INTERACTIONS,
    )
    pooling: str = option(
        "ends",
        "what a pooled model's vector is made of: ends = [CLS] and [EOS], as CLIP; mean = of all patches and of all "
        "tokens; attention = the same, weighted by a learned query on each side; heads = pool_queries such vectors, "
        "each projected, in one; relu = the mean of as many rectified features; bilinear = of products of two of them",
        choices=POOLINGS,
    )
    pool_queries: int = option(
        4, "learned queries a side of pooling: heads; relu and bilinear have as many numbers as these", at_least=1
    )
    reduction: int | None = option(
        None,
        "learned tokens that stand for an image's patches in the interaction, as Wukong's 12; null = the patches",
        at_least=1,
    )
    cls_in_interaction: bool = option(
        False, "let the image's [CLS] take part as one more token (paper: open)", typed=False
    )
    exclude_special_tokens: bool = option(
        False, "leave [BOS] and [EOS] out of the interaction, in training and evaluation (paper: both in)"
    )
    init_temperature: float = option(0.07, "the scale starts at 1 / this", above=0)
    max_logit_scale: float = option(100.0, "clamp of the scale (paper: open)", above=0, typed=False)
    gradient_checkpointing: bool = option(False, "recompute blocks in the backward pass: memory for time")

    @property
    def compared_dim(self) -> int:
        """Return the channels of the vectors that are compared: of each token, or of the pooled vector."""
        several = self.interaction == "pooled" and self.pooling in ("heads", "relu", "bilinear")
        numbers = (self.pool_queries if several else 1) * self.embed_dim
        return math.isqrt(numbers) ** 2 if several and self.pooling == "bilinear" else numbers

    def check(self) -> ModelConfig:
        """Return self, or raise UserError for a value that no model can be built from."""
        check_values(self, "model.")
        if self.text.width % self.text.heads:
            raise UserError(
                f"model.text.width={self.text.width} is not divisible by model.text.heads={self.text.heads}"
            )
        if self.reduction is not None and self.interaction != "token_wise":
            raise UserError(
                f"model.reduction={self.reduction} is about the patches that model.interaction=token_wise compares; "
                "leave it out"
            )
        if self.text.tokenizer is not None and self.exclude_special_tokens:
            raise UserError(
                "model.exclude_special_tokens=true leaves out the first and the last token of a caption, CLIP's [BOS] "
                f"and [EOS]; model.text.tokenizer={self.text.tokenizer} may have others there: give "
                "model.exclude_special_tokens=false"
            )
        if self.text.padding is not None and self.text.padding >= self.text.vocab_size:
            raise UserError(
                f"model.text.padding={self.text.padding} must be the id of one of the {self.text.vocab_size} tokens"
            )
        if 1 / self.init_temperature > self.max_logit_scale:
            raise UserError(
                f"model.init_temperature={self.init_temperature} starts the scale at its inverse, which must "
                f"be at most model.max_logit_scale={self.max_logit_scale}"
            )
        return self


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Make a ModelConfig from nested plain dicts (YAML, JSON); a UserError names a key or value that does not fit."""
    return read_settings(ModelConfig, values, "model.").check()


def preset_names() -> list[str]:
    """Return the names of the YAML files in ``filip/conf/model``."""
    folder = resources.files("filip.conf").joinpath("model")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_preset(name: str) -> ModelConfig:
    """Load the ModelConfig of ``filip/conf/model/<name>.yaml``; a UserError lists the presets if it does not exist."""
    if name not in preset_names():
        raise UserError(f"no model preset {name!r}; there are {', '.join(preset_names())}")
    text = resources.files("filip.conf").joinpath("model", f"{name}.yaml").read_text(encoding="utf-8")
    return config_from_dict(yaml.safe_load(text))
