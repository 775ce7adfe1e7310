"""Both towers in onnxruntime: tokens of any batch and length equal ours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from tokenizers import Tokenizer

import filip
from filip.export.__main__ import Export, export
from filip.export.standalone.filip_inputs import clean, to_pixels
from filip.models import ModelConfig, load_model
from tests.support.captions import UNTIDY_CAPTIONS


@pytest.mark.slow  # torch's exporter takes its time
@pytest.mark.parametrize(
    ("interaction", "pooling", "stem"),
    [("pooled", "ends", None), ("pooled", "heads", None), ("token_wise", "ends", "test_efficientnet")],
)
def test_onnxruntime_gives_our_embeddings(
    interaction: str,
    pooling: str,
    stem: str | None,
    saved: Callable[..., str],
    tmp_path: Path,
    pictures: list[Image.Image],
) -> None:
    def change(config: ModelConfig) -> None:
        config.image.layers = config.text.layers = 1  # torch's exporter takes seconds for each
        config.interaction, config.pooling, config.image.stem = interaction, pooling, stem

    file = saved(change)
    export(Export(model=file, out=str(tmp_path / "out"), to="onnx"))
    model = filip.load(file, device="cpu")
    image, text, score = (
        onnxruntime.InferenceSession(tmp_path / "out" / "onnx" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in ("vision_model", "text_model", "score")
    )
    pixels = np.stack([to_pixels(picture, 32) for picture in pictures])
    for n in (1, 4):
        result = image.run(None, {"pixel_values": pixels[:n]})[0]
        np.testing.assert_allclose(result, model.encode_images(pictures[:n]).numpy(), atol=1e-4)
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    tokenizer.enable_padding()
    images = image.run(None, {"pixel_values": pixels})[0]
    for texts in (UNTIDY_CAPTIONS, UNTIDY_CAPTIONS[:1]):
        read = tokenizer.encode_batch([clean(one) for one in texts])
        inputs = {
            name: np.array([getattr(one, key) for one in read])
            for name, key in (("input_ids", "ids"), ("attention_mask", "attention_mask"))
        }
        result = text.run(None, inputs)[0]
        mask = {} if interaction == "pooled" else {"attention_mask": inputs["attention_mask"]}
        logits = score.run(None, {"image_embeds": images, "text_embeds": result, **mask})
        expected = model.similarity(model.encode_images(pictures), model.encode_texts(texts))
        scale = float(load_model(file).scale())
        np.testing.assert_allclose(logits[0], scale * expected.i2t.numpy(), atol=1e-3)
        np.testing.assert_allclose(logits[1].T, scale * expected.t2i.numpy(), atol=1e-3)
        if interaction == "token_wise":
            result = result[inputs["attention_mask"].astype(bool)]
        np.testing.assert_allclose(result, model.encode_texts(texts).values.numpy(), atol=1e-4)
