"""Write a folder for transformers, with code: ``AutoModel.from_pretrained(folder, trust_remote_code=True)``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from filip.common.errors import UserError
from filip.common.files import naming, write_json
from filip.export.card import write_card
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.models import DualEncoder
from filip.models.weights import EMBEDDING, ROW_OF_TOKEN, write_safetensors
from filip.runs.source import ModelSource
from filip.text.tokenizer import BOS, EOS, merges, vocabulary

PICTURE = 'image = Image.new("RGB", (300, 200), "red")  # or Image.open("photo.jpg")\n'
USE = f"""from PIL import Image
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained(".", trust_remote_code=True).eval()  # . or another path to this folder
processor = AutoProcessor.from_pretrained(".", trust_remote_code=True)
{PICTURE}inputs = processor(images=[image], text=["a photo of a cat", "a photo of a dog"])
print(model(**inputs).logits_per_image.softmax(1))
"""
CODE = ("configuration_filip.py", "modeling_filip.py", "processing_filip.py", "filip_towers.py", "filip_inputs.py")


def write_hf(source: ModelSource, out: str) -> None:
    """Write configuration, weights, tokenizer, processor, code and model card; refuse towers with computed tables."""
    tokenizer = clip_tokenizer(source.model)
    refuse_computed_tables(source.model, "hf")
    config, weights = towers_of(source.model)
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
                **config,
            },
        )
        state = {f"towers.{name}": value.contiguous() for name, value in weights.items()}
        write_safetensors(state, folder / "model.safetensors", metadata_of(source))
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


def metadata_of(source: ModelSource) -> dict[str, str]:
    """Return the metadata of exported weights: the facts stay with them where the file alone is passed on."""
    return {"format": "pt", "extra": json.dumps(source.to_save)}


def towers_of(model: DualEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and state of the exported towers, with one row for all token embeddings of zeros.

    A file of :func:`filip.models.weights.save_compact` has many of them.
    """
    config, state = tower_config(model), model.state_dict()
    present = state[EMBEDDING].any(dim=1)
    if not present.all():
        rows = torch.where(present, present.cumsum(0) - 1, present.sum())
        state |= {ROW_OF_TOKEN: rows.int(), EMBEDDING: torch.nn.functional.pad(state[EMBEDDING][present], (0, 0, 0, 1))}
        config["text"]["token_rows"] = len(state[EMBEDDING])
    return config, state


def tower_config(model: DualEncoder) -> dict[str, Any]:
    """Return the configuration from which the exported code builds the towers."""
    if model.config.exclude_special_tokens:
        raise UserError(
            "the model was trained with model.exclude_special_tokens=true, and this format would score [BOS] and "
            "[EOS]; to=safetensors holds it"
        )
    if model.config.reduction is not None:
        raise UserError(
            "the model compares learned tokens (model.reduction), which this format has no code for; to=safetensors "
            "holds it"
        )
    config = asdict(model.config)
    towers = ("image", "text", "embed_dim", "interaction", "pooling", "pool_queries", "cls_in_interaction")
    return {name: config[name] for name in towers}


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


def preprocessor(size: int) -> dict[str, Any]:
    """Return the settings with which transformers' processor of CLIP makes squares of that side."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        **{f"do_{step}": True for step in ("resize", "center_crop", "rescale", "normalize", "convert_rgb")},
    }


def copy_code(folder: Path, names: tuple[str, ...]) -> None:
    """Copy the modules ``names`` of filip/export/standalone into ``folder``."""
    for name in names:
        with resources.as_file(resources.files("filip.export.standalone").joinpath(name)) as file:
            shutil.copyfile(file, folder / name)


def clip_tokenizer(model: DualEncoder) -> Any:
    """Return a ``transformers.CLIPTokenizer`` with our tokenizer's ids that cuts at the model's length.

    It lacks the cleaning of :func:`filip.text.tokenizer.clean`, which exported folders contain. Raises UserError if the
    model has another text tower or vocabulary than CLIP's.
    """
    from transformers import CLIPTokenizer

    if not model.config.text.like_clip:
        raise UserError(
            "to=hf, mv and onnx hold CLIP's text tower and vocabulary alone, and this model's text tower is another; "
            "to=safetensors and compact hold it"
        )
    if model.config.text.vocab_size != EOS + 1:
        raise UserError(
            f"the model has {model.config.text.vocab_size} word vectors and CLIP's vocabulary {EOS + 1} tokens: "
            "no tokenizer can be exported with it"
        )
    ids: dict[str, int] = {token: number for number, token in enumerate(vocabulary())}
    ids |= {"<|startoftext|>": BOS, "<|endoftext|>": EOS}
    pairs: Any = list(merges())  # transformers' annotation has strings
    longest = model.config.text.context_length
    tokenizer = CLIPTokenizer(vocab=ids, merges=pairs, model_max_length=longest)
    # in tokenizer.json, for readers without transformers
    tokenizer.backend_tokenizer.enable_truncation(longest)
    return tokenizer


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yield a folder next to ``out`` to write to, which becomes ``out`` on success and is removed on failure.

    Raises UserError if ``out`` exists and is not an empty folder: nothing of the user's is overwritten.
    """
    out = Path(out).absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"out={out} exists already; delete it or give another folder")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with naming(out):
        try:
            yield part
            for file in part.rglob("*"):  # safetensors lets only the owner read its files
                file.chmod(0o755 if file.is_dir() else 0o644)
            if out.is_dir():
                out.rmdir()
            part.rename(out)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise


MULTI_VECTOR_USE = f"""from PIL import Image
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder(".", trust_remote_code=True)  # . or another path to this folder
{PICTURE}texts, images = model.encode_query(["a photo of a cat"]), model.encode_document([image])
print(model.similarity(texts, images))      # text to image; with the images first, image to text
"""
MULTI_VECTOR_CODE = ("multi_vector_filip.py", "filip_towers.py", "filip_inputs.py")


def write_multi_vector(source: ModelSource, out: str) -> None:
    """Write ``modules.json`` with our module, weights, tokenizer and code; the similarity is the mean of maxima.

    Raises UserError for a pooled model, which has one vector, not several.
    """
    if source.model.config.interaction != "token_wise":
        raise UserError(
            "to=mv is for token-wise models: this one is pooled and has a single vector per image and text; "
            "to=hf and to=onnx hold it"
        )
    tokenizer = clip_tokenizer(source.model)
    refuse_computed_tables(source.model, "mv")
    from sentence_transformers import MultiVectorEncoder

    from filip.export.standalone.multi_vector_filip import FilipMultiVector

    config, weights = towers_of(source.model)
    module = FilipMultiVector(config, tokenizer)
    module.towers.load_state_dict(weights)
    encoder = MultiVectorEncoder(modules=[module], similarity_fn_name="meanmaxsim", device="cpu")
    with new_folder(out) as folder:
        encoder.save(str(folder), create_model_card=False)
        write_safetensors(load_file(folder / "model.safetensors"), folder / "model.safetensors", metadata_of(source))
        copy_code(folder, MULTI_VECTOR_CODE)
        write_json(
            folder / "modules.json",
            [{"idx": 0, "name": "0", "path": "", "type": "multi_vector_filip.FilipMultiVector"}],
        )
        write_card(folder, source, "sentence-transformers", MULTI_VECTOR_USE)
