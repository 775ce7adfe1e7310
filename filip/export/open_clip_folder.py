"""Write a pooled model with CLIP's towers for open_clip, and for transformers without code of ours."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import Tensor

from filip.common.errors import UserError
from filip.common.files import write_json
from filip.export.card import write_card
from filip.export.hf_folder import PICTURE, clip_tokenizer, metadata_of, new_folder, preprocessor
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder
from filip.models.open_clip_names import open_clip_names, to_open_clip
from filip.models.weights import write_safetensors
from filip.runs.source import ModelSource
from filip.text.tokenizer import BOS, EOS

USE = f"""import open_clip
from PIL import Image

model, _, transform = open_clip.create_model_and_transforms("local-dir:.")  # . or another path to this folder
tokenizer = open_clip.get_tokenizer("local-dir:.")
{PICTURE}images = model.eval().encode_image(transform(image)[None], normalize=True)
texts = model.encode_text(tokenizer(["a photo of a cat", "a photo of a dog"]), normalize=True)
print((model.logit_scale.exp() * images @ texts.T).softmax(1))
"""


def write_open_clip(source: ModelSource, out: str) -> None:
    """Write a folder with ``open_clip_config.json`` and ``open_clip_model.safetensors``.

    Raises UserError for a model that open_clip cannot hold: token-wise, or with an image tower of another form.
    """
    model_config = open_clip_config(source.model)
    with new_folder(out) as folder:
        preprocess = {"mean": CLIP_MEAN, "std": CLIP_STD, "interpolation": "bicubic", "resize_mode": "shortest"}
        write_json(folder / "open_clip_config.json", {"model_cfg": model_config, "preprocess_cfg": preprocess})
        weights = to_open_clip(source.model)
        write_safetensors(weights, folder / "open_clip_model.safetensors", metadata_of(source))
        write_card(folder, source, "open_clip", USE)


CLIP_USE = f"""from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".").eval()  # . or another path to this folder
processor = AutoProcessor.from_pretrained(".")
{PICTURE}texts = ["a photo of a cat", "a photo of a dog"]
inputs = processor(images=[image], text=texts, padding=True, return_tensors="pt")
print(model(**inputs).logits_per_image.softmax(1))
"""
HF_NAMES = (  # open_clip's names to those of transformers' CLIPModel, in this order
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.transformer\.resblocks", "vision_model.encoder.layers"),
    (r"^transformer\.resblocks", "text_model.encoder.layers"),
    (r"^visual\.class_embedding", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1", "vision_model.embeddings.patch_embedding"),
    (r"^visual\.ln_pre", "vision_model.pre_layrnorm"),
    (r"^visual\.ln_post", "vision_model.post_layernorm"),
    (r"^token_embedding", "text_model.embeddings.token_embedding"),
    (r"^positional_embedding", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final", "text_model.final_layer_norm"),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def write_clip(source: ModelSource, out: str) -> None:
    """Write a folder that transformers' own ``CLIPModel`` loads, without code. UserError as :func:`write_open_clip`."""
    from transformers import CLIPConfig

    about, model = open_clip_config(source.model), source.model
    state: dict[str, Tensor] = {}
    for name, tensor in to_open_clip(model).items():
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("projection.weight"):
            state[name] = tensor.T.contiguous()
        elif ".attn.in_proj_" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")] = part.contiguous()
        else:
            state[name] = tensor.contiguous()
    common = {"hidden_act": "quick_gelu" if about["quick_gelu"] else "gelu", "projection_dim": about["embed_dim"]}
    heads = {
        "vision": about["vision_cfg"]["width"] // about["vision_cfg"]["head_width"],
        "text": about["text_cfg"]["heads"],
    }
    towers = {}
    for tower in heads:
        width, layers = (about[f"{tower}_cfg"][name] for name in ("width", "layers"))
        blocks = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads[tower]}
        towers[tower] = {**common, **blocks, "intermediate_size": 4 * width}
    towers["vision"] |= {name: about["vision_cfg"][name] for name in ("image_size", "patch_size")}
    towers["text"] |= {"vocab_size": EOS + 1, "max_position_embeddings": about["text_cfg"]["context_length"]}
    towers["text"] |= {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    config = CLIPConfig(vision_config=towers["vision"], text_config=towers["text"], projection_dim=about["embed_dim"])
    config.architectures = ["CLIPModel"]
    with new_folder(out) as folder:
        config.save_pretrained(folder)
        write_safetensors(state, folder / "model.safetensors", metadata_of(source))
        clip_tokenizer(model).save_pretrained(folder)
        write_json(folder / "preprocessor_config.json", preprocessor(model.image_size))
        write_card(folder, source, "transformers", CLIP_USE)


def open_clip_config(model: DualEncoder) -> dict[str, Any]:
    """Return the architecture in open_clip's terms."""
    _refuse_what_clip_is_not(model)
    config, trunk = model.config, cast(Any, model.image.trunk)
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.text.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": model.image_size,
            "patch_size": model.image.patch_size[0],
            "width": model.image.width,
            "layers": model.image.depth,
            "head_width": model.image.width // trunk.blocks[0].attn.num_heads,
        },
        "text_cfg": {
            "context_length": config.text.context_length,
            "vocab_size": config.text.vocab_size,
            "width": config.text.width,
            "heads": config.text.heads,
            "layers": config.text.layers,
        },
    }


def _refuse_what_clip_is_not(model: DualEncoder) -> None:
    config, trunk = model.config, cast(Any, model.image.trunk)
    if config.interaction != "pooled":
        raise UserError(
            "to=open_clip holds pooled models only: open_clip compares one vector per image and text, and this model "
            "is token-wise; to=hf and to=mv keep the tokens"
        )
    if config.pooling != "ends":
        raise UserError(
            f"to=open_clip holds models whose vectors are those of [CLS] and [EOS], and this one has pooling="
            f"{config.pooling}; to=hf holds it"
        )
    if not config.text.like_clip:
        raise UserError(
            "to=open_clip holds CLIP's text tower and vocabulary alone, and this model's text tower is another; "
            "to=safetensors holds it"
        )
    if config.text.vocab_size != EOS + 1:
        raise UserError(
            f"to=open_clip: the model has {config.text.vocab_size} word vectors, and open_clip's tokenizer has "
            f"{EOS + 1} tokens; to=safetensors holds it"
        )
    ours = {name for name in model.state_dict() if name.startswith("image.")}
    clips = {name for name in open_clip_names(model.image.depth, 0) if name.startswith("image.")}
    if ours != clips:
        other = sorted(ours ^ clips)[0].removeprefix("image.trunk.")
        verb = "has" if f"image.trunk.{other}" in ours else "lacks"
        raise UserError(
            f"to=open_clip: the image tower {config.image.timm!r} {verb} {other}, unlike CLIP's vision tower; "
            "to=hf holds any tower"
        )
    block = trunk.blocks[0]
    activation = {"GELU": "gelu", "QuickGELU": "quick_gelu"}.get(type(block.mlp.act).__name__)
    if activation != config.text.activation:
        raise UserError(
            f"to=open_clip: open_clip has one activation for both towers; here the image tower has {block.mlp.act} "
            f"and the text tower {config.text.activation}"
        )
    if {trunk.norm.eps, trunk.norm_pre.eps, block.norm1.eps, block.norm2.eps} != {1e-5}:
        raise UserError(f"to=open_clip: CLIP's LayerNorm epsilon is 1e-5, this image tower's is {block.norm1.eps}")
    if block.mlp.fc1.out_features != 4 * model.image.width:
        raise UserError("to=open_clip: CLIP's MLP is four times as wide as its tower, this image tower's is not")
