"""Folders that ``filip export to=onnx`` has written, run in onnxruntime: ``onnx:FOLDER``, ``onnx:FOLDER:int8``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from filip.errors import UserError, first_line
from filip.eval.encoders import Loading
from filip.extras import how_to_install


class OnnxEncoder:
    """Both graphs of a folder, on the CPU; whatever the variant computes in, vectors come out in float32.

    The graphs hold the model's features: the words and patches of a token-wise model, one vector of a pooled one.
    UserError if the folder or the variant is missing, or another device or image size is asked for.
    """

    def __init__(self, folder: str, variant: str, loading: Loading) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(f"onnx: models need onnxruntime: {how_to_install('export')}") from error
        from filip.data.eval_transform import EvalTransform

        place, end = Path(folder), f"_{variant}" if variant else ""
        files = [place / "onnx" / f"{tower}{end}.onnx" for tower in ("vision_model", "text_model")]
        if missing := [file for file in [*files, place / "inputs.json"] if not file.is_file()]:
            raise UserError(
                f"onnx:{folder}{':' if variant else ''}{variant} has no {missing[0].name}; write the folder with "
                f"`filip export to=onnx{f' variants=[{variant}]' if variant else ''}`"
            )
        about = json.loads((place / "inputs.json").read_text(encoding="utf-8"))
        if loading.device != "cpu" or loading.image_size not in (None, about["image_size"]) or loading.tokens:
            raise UserError(
                f"onnx:{folder} runs on the CPU, at its own {about['image_size']} px and with the vectors that it has: "
                "leave out device=, image_size= and tokens="
            )
        self._image, self._text = (_session(onnxruntime, file) for file in files)
        self.name = f"onnx {place.name}{' ' if variant else ''}{variant}"
        self.device, self.dtype, self.family = "cpu", torch.float32, "filip"
        self.token_wise = bool(about["token_wise"])
        self.details = {"variant": variant} if variant else {}
        self.image_size, self.context_length = int(about["image_size"]), int(about["context_length"])
        rows, columns = about["grid"] if self.token_wise else (0, 0)
        self.grid: tuple[int, int] = (rows, columns)
        self.transform: Callable[[Image.Image], Tensor] = EvalTransform(self.image_size)

    @classmethod
    def from_name(cls, name: str, loading: Loading) -> OnnxEncoder:
        folder, _, variant = name.partition(":")
        return cls(folder, variant, loading)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return torch.from_numpy(self._image.run(None, {"pixel_values": pixels.float().numpy()})[0])

    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        from filip.tokenizer import tokenize

        ids, lengths = tokenize(list(texts), self.context_length)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.long().numpy()}
        features = torch.from_numpy(self._text.run(None, inputs)[0])
        return (features[mask], lengths) if self.token_wise else (features, None)

    def probe_features(self, pixels: Tensor) -> Tensor:
        return self.patches(pixels).mean(1)

    def patches(self, pixels: Tensor) -> Tensor:
        if self.grid == (0, 0):
            raise UserError(f"{self.name} has one vector an image, and none of its patches")
        return self.encode_images(pixels)[:, -self.grid[0] * self.grid[1] :]  # [CLS], if there is one, is first

    def words(self, texts: Sequence[str]) -> list[Tensor]:
        vectors, lengths = self.encode_texts(texts)
        if lengths is None:
            raise UserError(f"{self.name} has one vector a text, and none of its words")
        return list(vectors.split(lengths.tolist()))

    def tokens(self, text: str) -> list[str]:
        from filip.tokenizer import token_names

        return token_names(text, self.context_length)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        from filip.tokenizer import token_counts

        return token_counts(list(texts))


def _session(onnxruntime: Any, file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: it warns about every constant that it folds
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # an error of protobuf, an operator or a version
        raise UserError(f"onnxruntime cannot load {file}: {first_line(error)}") from error
