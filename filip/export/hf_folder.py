"""Write a folder for transformers, with code: ``AutoModel.from_pretrained(folder, trust_remote_code=True)``."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.export.card import write_card
from filip.export.clip_tokenizer import clip_tokenizer
from filip.export.folder import new_folder
from filip.files import write_json
from filip.models import DualEncoder
from filip.models.weights import write_safetensors
from filip.runs.source import ModelSource

USE = """    from transformers import AutoModel, AutoProcessor
    model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained("FOLDER", trust_remote_code=True)
    inputs = processor(images=[image], text=["a photo of a cat", "a photo of a dog"])
    print(model(**inputs).logits_per_image.softmax(1))
"""
CODE = ("configuration_filip.py", "modeling_filip.py", "processing_filip.py", "filip_towers.py", "filip_inputs.py")


def write_hf(source: ModelSource, out: str) -> None:
    """Write configuration, weights, tokenizer, processor, code and model card; refuse towers with computed tables."""

    tokenizer = clip_tokenizer(source.model)
    refuse_computed_tables(source.model, "hf")
    with new_folder(out) as folder:
        copy_code(folder, CODE)
        write_json(
            folder / "config.json",
            {
                "architectures": ["FilipModel"],
                "auto_map": {
                    "AutoConfig": "configuration_filip.FilipConfig",
                    "AutoModel": "modeling_filip.FilipModel",
                    "AutoModelForZeroShotImageClassification": "modeling_filip.FilipModel",
                },
                "model_type": "filip",
                "dtype": "float32",
                **tower_config(source.model),
            },
        )
        state = {f"towers.{name}": value.contiguous() for name, value in source.model.state_dict().items()}
        write_safetensors(state, folder / "model.safetensors", {"format": "pt"})
        tokenizer.save_pretrained(folder)
        write_json(
            folder / "preprocessor_config.json",
            {
                "auto_map": {
                    "AutoImageProcessor": "processing_filip.FilipImageProcessor",
                    "AutoProcessor": "processing_filip.FilipProcessor",
                },
                "image_processor_type": "FilipImageProcessor",
                "processor_class": "FilipProcessor",
                "size": source.model.image_size,
            },
        )
        write_card(folder, source, "transformers", USE)


def tower_config(model: DualEncoder) -> dict[str, Any]:
    """Return the configuration from which the exported code builds the towers."""
    if model.config.exclude_special_tokens:
        raise UserError(
            "the model was trained with model.exclude_special_tokens=true, and this format would score [BOS] and "
            "[EOS]; to=safetensors holds it"
        )
    if model.config.pooling == "queries":
        raise UserError(
            "the model compares the vectors of learned queries (model.pooling=queries), which this format has no code "
            "for; to=safetensors holds it"
        )
    config = asdict(model.config)
    return {
        name: config[name] for name in ("image", "text", "embed_dim", "interaction", "pooling", "cls_in_interaction")
    }


def refuse_computed_tables(model: DualEncoder, to: str) -> None:
    """Raise UserError for towers with tables that are computed when they are built and not stored.

    The loaders of this format build a model without memory and fill it from the file alone.
    """
    stored = model.state_dict()
    if names := [name for name, _ in model.named_buffers() if name not in stored]:
        raise UserError(
            f"to={to}: {names[0]} of the image tower {model.config.image.timm!r} is computed and not stored, and the "
            "loaders of this format would leave it empty"
        )


def copy_code(folder: Path, names: tuple[str, ...]) -> None:
    """Copy the modules ``names`` of filip/export/standalone into ``folder``."""
    for name in names:
        with resources.as_file(resources.files("filip.export.standalone").joinpath(name)) as file:
            shutil.copyfile(file, folder / name)
