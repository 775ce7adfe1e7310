"""Define FILIP for sentence-transformers: ``MultiVectorEncoder(folder, trust_remote_code=True)``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_transformers.base.modality import infer_modality
from sentence_transformers.base.modules import InputModule
from transformers import AutoTokenizer
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from .filip_inputs import clean, to_pixels
from .filip_towers import Towers


class FilipMultiVector(InputModule):
    """Both towers. A batch holds images (PIL, paths, URLs) or texts; each token becomes one unit vector."""

    tokenizer: Any
    config_file_name = "filip_config.json"
    config_keys: list[str] = ["config"]  # noqa: RUF012 (an instance variable of the base class)

    def __init__(self, config: dict[str, Any], tokenizer: Any) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.towers = Towers(config)

    @property
    def modalities(self) -> list[Any]:
        return ["text", "image"]

    @property
    def processor(self) -> SimpleNamespace:
        """Return what ``get_n_patches`` asks for: how many patches an image has, [CLS] not among them."""
        trunk, size = self.towers.image.trunk, self.config["image"]["image_size"]
        patches: Any = trunk.patch_embed
        height, width = patches.feat_ratio(as_scalar=False)
        return SimpleNamespace(image_seq_length=size // height * (size // width))

    @property
    def max_seq_length(self) -> int:
        return self.config["text"]["context_length"]

    def get_embedding_dimension(self) -> int:
        return self.config["embed_dim"]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return ``pixel_values``, or ``input_ids`` and ``attention_mask``."""
        images = [_image(one) for one in inputs]
        if any(image is not None for image in images):
            size = self.config["image"]["image_size"]
            pixels = [to_pixels(image, size) for image in images if image is not None]
            return {"pixel_values": torch.from_numpy(np.stack(pixels))}
        texts = [clean((prompt or "") + _text(one)) for one in inputs]
        return dict(
            self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt")
        )

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add ``token_embeddings [b, n, d]`` and the ``attention_mask [b, n]`` of its tokens."""
        if "pixel_values" in features:
            tokens = self.towers.encode_image(features["pixel_values"].to(self.towers.logit_scale.dtype))
            mask = torch.ones(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
            return {**features, "token_embeddings": tokens, "attention_mask": mask}
        tokens = self.towers.encode_text(features["input_ids"], features["attention_mask"])
        return {**features, "token_embeddings": tokens}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        self.save_tokenizer(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> FilipMultiVector:
        if backend != "torch":
            raise ValueError(f"backend={backend!r}: this model runs in torch; FILIP's ONNX export runs elsewhere")
        where: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        config = cls.load_config(model_name_or_path, cache_folder=cache_folder, **where)["config"]
        model = cls(config, AutoTokenizer.from_pretrained(model_name_or_path, cache_dir=cache_folder, **where))
        cls.load_torch_weights(model_name_or_path, cache_folder=cache_folder, model=model, **where)
        given = model_kwargs or {}
        dtype = given.get("dtype", given.get("torch_dtype"))
        if isinstance(dtype, str):  # "auto" is the file's
            dtype = getattr(torch, dtype, None)
        return model if dtype is None else model.to(dtype)


def _text(one: Any) -> str:
    return one["text"] if isinstance(one, dict) else one


def _image(one: Any) -> Image.Image | None:
    """Return the picture in an input (PIL, path, URL, array, tensor), or None if it is a text."""
    if infer_modality(one, ["text", "image"]) != "image":
        return None
    if isinstance(one, dict):
        one = one["image"]
    if isinstance(one, np.ndarray | torch.Tensor):
        return to_pil_image(one)
    if isinstance(one, Image.Image):
        return one
    # transformers would put transparency onto black
    return Image.open(one) if Path(one).is_file() else load_image(one)
