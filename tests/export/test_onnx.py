"""Both towers in onnxruntime: tokens of any batch and length equal ours."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from tokenizers import Tokenizer

import filip
from filip.errors import UserError
from filip.eval.encoders import load_encoder
from filip.export.__main__ import Export, export
from filip.export.onnx_folder import write_variant
from filip.export.standalone.filip_inputs import clean, to_pixels
from filip.models import ModelConfig, load_model
from tests.support.captions import UNTIDY_CAPTIONS


def one_layer(config: ModelConfig) -> None:
    """Leave each tower one layer: torch's exporter takes seconds for each."""
    config.image.layers = config.text.layers = 1


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
        one_layer(config)
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


def assert_7_bits(file: Path) -> None:
    """Check that the graph's weights are small enough for a CPU without VNNI, which adds two products in 16 bits."""
    tensors = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(file).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]
    largest = max(int(np.abs(tensor.astype(int)).max()) for tensor in tensors)
    assert 32 < largest <= 64 and 2 * 255 * largest < 2**15, file


@pytest.mark.slow
def test_variants_are_smaller_and_their_loss_of_recall_is_printed(
    saved: Callable[..., str], tmp_path: Path, pictures: list[Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (image, caption) in enumerate(zip(pictures, UNTIDY_CAPTIONS, strict=False)):
        (tmp_path / "pairs").mkdir(exist_ok=True)
        image.save(tmp_path / "pairs" / f"{i}.png")
        (tmp_path / "pairs" / f"{i}.txt").write_text(caption)
    out = tmp_path / "out"
    file = saved(one_layer)
    options = Export(model=file, out=str(out), to="onnx", variants=["fp16", "int8"], data=str(tmp_path / "pairs"))
    export(options)
    said = capsys.readouterr().err
    for variant in ("fp16", "int8"):
        assert re.search(rf"^{variant}, .* MB: R@1/10 of pairs i2t .* %, t2i .* %; lost .* points$", said, re.M)
    card = (out / "README.md").read_text()
    assert "| int8 |" in card.partition("## Variants")[2]
    assert_7_bits(out / "onnx" / "vision_model_int8.onnx")
    assert_7_bits(out / "onnx" / "text_model_int8.onnx")
    sizes = [(out / "onnx" / f"text_model{end}.onnx").stat().st_size for end in ("", "_fp16", "_int8")]
    assert sizes[1] < 0.6 * sizes[0] and sizes[2] < 0.3 * sizes[0]
    whole, half, quarter = (load_encoder(f"onnx:{out}{end}") for end in ("", ":fp16", ":int8"))
    pixels = torch.stack([whole.transform(picture.convert("RGB")) for picture in pictures])
    texts, lengths = whole.encode_texts(UNTIDY_CAPTIONS)
    ours = load_encoder(file)
    torch.testing.assert_close(whole.encode_images(pixels), ours.encode_images(pixels), atol=1e-4, rtol=0)
    expected, same = ours.encode_texts(UNTIDY_CAPTIONS)
    assert torch.equal(lengths, same)
    torch.testing.assert_close(texts, expected, atol=1e-4, rtol=0)
    for encoder, tolerance in ((half, 0.01), (quarter, 0.2)):
        result, same = encoder.encode_texts(UNTIDY_CAPTIONS)
        assert torch.equal(same, lengths)
        torch.testing.assert_close(result, texts, atol=tolerance, rtol=0)
        torch.testing.assert_close(encoder.encode_images(pixels), whole.encode_images(pixels), atol=tolerance, rtol=0)
        assert not torch.equal(result, texts)
    assert whole.patches(pixels).shape[1] == whole.grid[0] * whole.grid[1]
    assert torch.equal(whole.probe_features(pixels), whole.patches(pixels).mean(1))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"to": "onnx", "variants": ["int4"]}, "variants=int4: choose from fp16, int8"),
        ({"to": "onnx", "variants": ["int8"], "data": "nowhere"}, "nowhere"),
        ({"to": "hf", "variants": ["int8"]}, "variants= and data= are for to=onnx; to=hf has only one form"),
    ],
)
def test_what_no_variant_can_be_made_of_is_refused(
    options: dict[str, Any], reason: str, saved: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        export(Export(model=saved(), out=str(tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_variant_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"has no vision_model_int8.onnx; write the folder with `filip export to=onnx variants"
    ):
        load_encoder(f"onnx:{tmp_path}:int8")
    (tmp_path / "onnx").mkdir()
    for name in ("vision_model.onnx", "text_model.onnx"):
        (tmp_path / "onnx" / name).write_bytes(b"cut")
    (tmp_path / "inputs.json").write_text(
        '{"image_size": 32, "context_length": 16, "token_wise": true, "grid": [4, 4]}'
    )
    with pytest.raises(UserError, match=r"onnxruntime cannot load .*vision_model.onnx"):
        load_encoder(f"onnx:{tmp_path}")
    with pytest.raises(UserError, match=r"runs on the CPU, at its own 32 px"):
        load_encoder(f"onnx:{tmp_path}", image_size=64)


def test_int8_of_convolutions_is_as_small_as_fp16(tmp_path: Path) -> None:
    """Their weights used to stay in float32: int8 of a convolutional stem was larger than fp16."""
    import onnxruntime

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3))
    pixels = torch.randn(1, 3, 16, 16)
    file = tmp_path / "image.onnx"
    torch.onnx.export(network, (pixels,), str(file), input_names=["pixels"], dynamo=False)
    for variant in ("fp16", "int8"):
        write_variant(file, variant, external=False)
    sizes = {name: (tmp_path / f"image_{name}.onnx").stat().st_size for name in ("fp16", "int8")}
    assert sizes["int8"] < 1.1 * sizes["fp16"] < 0.7 * file.stat().st_size
    session = onnxruntime.InferenceSession(str(tmp_path / "image_int8.onnx"))
    (result,) = session.run(None, {"pixels": pixels.numpy()})
    assert torch.allclose(torch.from_numpy(result), network(pixels), atol=1e-2)
