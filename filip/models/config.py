"""Configuration of a dual encoder, which run folders and saved models hold as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, cast

import yaml

from filip.errors import UserError

INTERACTIONS = ("token_wise", "pooled")
ACTIVATIONS = ("gelu", "quick_gelu", "gelu_tanh")
INITIALISATIONS = ("clip", "timm")
POOLINGS = ("ends", "mean", "attention", "queries")


@dataclass
class ImageTowerConfig:
    """A vision transformer from timm, by name, with optional changes of its size.

    CLIP's ViT and timm's plain ViT (``vit_base_patch32_224``) differ in four places; timm's ``*_clip_*``
    names have CLIP's version of the first three, and those are what the presets use:

    - CLIP normalises once more *before* the blocks (``norm_pre``), timm does not;
    - CLIP's patch embedding has no bias, timm's has one;
    - CLIP's LayerNorm epsilon is 1e-5, timm's 1e-6;
    - OpenAI's CLIP uses QuickGELU, ``x * sigmoid(1.702 x)``; timm and open_clip's own trainings use GELU.
      Ours is GELU (one fused kernel, less memory); ``activation: quick_gelu`` gives OpenAI's.
    """

    timm: str = field(default="vit_base_patch32_clip_224", metadata={"help": "any ViT of timm, by name"})
    image_size: int = field(default=224, metadata={"help": "side of the square input in px"})
    patch_size: int | None = field(default=None, metadata={"help": "px; null = as the timm name says"})
    width: int | None = field(default=None, metadata={"help": "channels; null = as the timm name says"})
    layers: int | None = field(default=None, metadata={"help": "blocks; null = as the timm name says"})
    heads: int | None = field(default=None, metadata={"help": "attention heads; null = as the timm name says"})
    activation: str | None = field(
        default="gelu", metadata={"help": "gelu, quick_gelu, gelu_tanh, or null = as the timm name says"}
    )
    init: str = field(
        default="clip", metadata={"help": "clip = as CLIP's code initialises its vision tower; timm = timm's"}
    )
    stem: str | None = field(
        default=None,
        metadata={
            "help": "convolutional network of timm below the transformer: the cells of its feature map are the patches"
        },
    )
    stem_stride: int = field(default=16, metadata={"help": "px per cell of the stem's feature map"})
    stem_cells: int = field(
        default=1, metadata={"help": "cells of the feature map along a side of a patch: 2 makes a patch of 2 x 2"}
    )
    options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "further arguments of the timm model, e.g. {reg_tokens: 4}"}
    )


@dataclass
class TextTowerConfig:
    """CLIP's text tower, a causal, pre-norm transformer like GPT-2's, or SigLIP's, which reads its padding, too."""

    width: int = field(default=512, metadata={"help": "channels"})
    layers: int = field(default=12, metadata={"help": "blocks"})
    heads: int = field(default=8, metadata={"help": "attention heads; width must be divisible by it"})
    context_length: int = field(default=77, metadata={"help": "longest caption in tokens, [BOS] and [EOS] included"})
    vocab_size: int = field(default=49408, metadata={"help": "word vectors; CLIP's BPE has 49408 tokens"})
    activation: str = field(default="gelu", metadata={"help": "gelu, quick_gelu or gelu_tanh"})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "a tokenizer.json of Hugging Face's tokenizers, which run folder and saved model then carry; "
            "null = CLIP's BPE"
        },
    )
    padding: int | None = field(
        default=None,
        metadata={
            "help": "id of the padding up to context_length, for a tower that looks both ways and reads it, as "
            "SigLIP's; null = causal and blind to padding, as CLIP's"
        },
    )
    mlp_width: int | None = field(default=None, metadata={"help": "hidden channels of a block; null = 4 x width"})
    norm_eps: float = field(default=1e-5, metadata={"help": "epsilon in the LayerNorms; SigLIP's is 1e-6"})

    @property
    def like_clip(self) -> bool:
        """Return whether formats and pages that hold CLIP's text tower and vocabulary alone can hold this one."""
        same = TextTowerConfig(self.width, self.layers, self.heads, self.context_length, self.vocab_size)
        return self.activation != "gelu_tanh" and replace(self, activation=same.activation) == same


@dataclass
class ModelConfig:
    """FILIP (``interaction: token_wise``) or CLIP with the same encoders (``interaction: pooled``)."""

    name: str = field(default="base", metadata={"help": "shown in tables"})
    image: ImageTowerConfig = field(default_factory=ImageTowerConfig, metadata={"help": "the vision transformer"})
    text: TextTowerConfig = field(default_factory=TextTowerConfig, metadata={"help": "the text transformer"})
    embed_dim: int = field(default=256, metadata={"help": "channels of each token (or pooled) embedding"})
    interaction: str = field(
        default="token_wise",
        metadata={"help": "token_wise = all patches and words; pooled = one vector each, the CLIP baseline"},
    )
    pooling: str = field(
        default="ends",
        metadata={
            "help": "what a pooled model's vector is made of: ends = [CLS] and [EOS], as CLIP; mean = of all patches "
            "and of all tokens; attention = the same, weighted by a learned query on each side. queries = "
            "pool_queries such vectors a side, which a token_wise model compares in place of patches and words"
        },
    )
    pool_queries: int = field(default=4, metadata={"help": "vectors a side of pooling: queries"})
    cls_in_interaction: bool = field(
        default=False, metadata={"help": "let the image's [CLS] take part as one more token (paper: open)"}
    )
    exclude_special_tokens: bool = field(
        default=False,
        metadata={"help": "leave [BOS] and [EOS] out of the interaction, in training and evaluation (paper: both in)"},
    )
    init_temperature: float = field(default=0.07, metadata={"help": "the scale starts at 1 / this"})
    max_logit_scale: float = field(default=100.0, metadata={"help": "clamp of the scale (paper: open)"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "recompute blocks in the backward pass: memory for time"}
    )

    def check(self) -> ModelConfig:
        """Return self, or raise UserError for a value that no model can be built from."""
        _choice("model.interaction", self.interaction, INTERACTIONS)
        _choice("model.pooling", self.pooling, POOLINGS)
        _choice("model.text.activation", self.text.activation, ACTIVATIONS)
        _choice("model.image.init", self.image.init, INITIALISATIONS)
        if self.image.activation is not None:
            _choice("model.image.activation", self.image.activation, ACTIVATIONS)
        if self.text.width % self.text.heads:
            raise UserError(
                f"model.text.width={self.text.width} is not divisible by model.text.heads={self.text.heads}"
            )
        for name, value in (("embed_dim", self.embed_dim), ("text.layers", self.text.layers)):
            if value < 1:
                raise UserError(f"model.{name}={value} must be at least 1")
        if self.pooling == "queries":
            self._check_queries()
        if self.text.tokenizer is not None and self.exclude_special_tokens:
            raise UserError(
                "model.exclude_special_tokens=true leaves out the first and the last token of a caption, CLIP's [BOS] "
                f"and [EOS]; model.text.tokenizer={self.text.tokenizer} may have others there: give "
                "model.exclude_special_tokens=false"
            )
        if self.text.padding is not None and not 0 <= self.text.padding < self.text.vocab_size:
            raise UserError(
                f"model.text.padding={self.text.padding} must be the id of one of the model.text.vocab_size="
                f"{self.text.vocab_size} tokens"
            )
        if self.init_temperature <= 0 or 1 / self.init_temperature > self.max_logit_scale:
            raise UserError(
                f"model.init_temperature={self.init_temperature} starts the scale at its inverse, which must "
                f"be positive and at most model.max_logit_scale={self.max_logit_scale}"
            )
        return self

    def _check_queries(self) -> None:
        if self.pool_queries < 1:
            raise UserError(f"model.pool_queries={self.pool_queries} must be at least 1")
        if self.interaction != "token_wise":
            raise UserError(
                f"model.pooling=queries makes several vectors a side, which model.interaction={self.interaction} "
                "cannot compare; set model.interaction=token_wise, or model.pooling=attention for one vector"
            )
        for name in ("cls_in_interaction", "exclude_special_tokens"):
            if getattr(self, name):
                raise UserError(
                    f"model.{name}=true is about patches and words, which model.pooling=queries does not compare; "
                    "drop one"
                )


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}={value!r} is unknown; choose one of {', '.join(allowed)}")


def config_from_dict(values: dict[str, Any]) -> ModelConfig:
    """Make a ModelConfig from nested plain dicts (YAML, JSON); a UserError names an unknown key."""
    return cast(ModelConfig, _build(ModelConfig, values, "model")).check()


def _build(schema: type, values: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cast(Any, schema))}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UserError(f"{where} has no key {unknown[0]!r}; known: {', '.join(fields)}")
    nested = {"image": ImageTowerConfig, "text": TextTowerConfig} if schema is ModelConfig else {}
    return schema(**{k: _build(nested[k], v, f"{where}.{k}") if k in nested else v for k, v in values.items()})


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
