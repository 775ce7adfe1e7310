"""Both towers in onnxruntime: tokens of any batch and length equal ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

import filip
from filip.export.__main__ import Export, export
from filip.export.standalone.filip_inputs import clean, to_pixels
from tests.support.captions import UNTIDY_CAPTIONS


@pytest.mark.slow  # torch's exporter takes its time
@pytest.mark.parametrize("interaction", ["token_wise", "pooled"])
def test_onnxruntime_gives_our_embeddings(
    interaction: str, saved: Callable[..., str], tmp_path: Path, pictures: list[Image.Image]
) -> None:
    file = saved(lambda config: setattr(config, "interaction", interaction))
    export(Export(model=file, out=str(tmp_path / "out"), to="onnx"))
    model = filip.load(file, device="cpu")
    image, text = (
        onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("image", "text")
    )
    pixels = torch.stack([to_pixels(picture, 32) for picture in pictures]).numpy()
    for n in (1, 4):
        found = image.run(None, {"pixel_values": pixels[:n]})[0]
        np.testing.assert_allclose(found, model.encode_images(pictures[:n]).numpy(), atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for texts in (UNTIDY_CAPTIONS, UNTIDY_CAPTIONS[:1]):
        inputs = dict(
            tokenizer([clean(one) for one in texts], padding=True, truncation=True, return_tensors="np")
        )
        found = text.run(None, inputs)[0]
        if interaction == "token_wise":
            found = found[inputs["attention_mask"].astype(bool)]
        np.testing.assert_allclose(found, model.encode_texts(texts).values.numpy(), atol=1e-4)
