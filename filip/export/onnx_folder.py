"""Write both towers and their similarity as ONNX graphs with token outputs, for any batch and any length of text."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filip.common.files import write_json
from filip.export.card import write_card
from filip.export.hf_folder import clip_tokenizer, copy_code, new_folder, preprocessor, towers_of
from filip.export.standalone.filip_towers import Towers
from filip.runs.source import ModelSource
from filip.text.tokenizer import BOS

USE = """import numpy
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from filip_inputs import clean, to_pixels  # in the folder, where this runs; needs numpy, Pillow and ftfy

names = ("vision_model", "text_model", "score")
image, text, score = (onnxruntime.InferenceSession(f"onnx/{name}.onnx") for name in names)
tokenizer = Tokenizer.from_file("tokenizer.json")
tokenizer.enable_padding()
read = tokenizer.encode_batch([clean("a photo of a cat"), clean("two dogs")])
ids, mask = (numpy.array([getattr(one, name) for one in read]) for name in ("ids", "attention_mask"))
picture = Image.new("RGB", (300, 200), "red")  # or Image.open("photo.jpg")
pixels = numpy.stack([to_pixels(picture, SIZE)])
images = image.run(None, {"pixel_values": pixels})[0]
texts = text.run(None, {"input_ids": ids, "attention_mask": mask})[0]
# logits per image and per text
print(score.run(None, {"image_embeds": images, "text_embeds": texts, "attention_mask": mask}))
"""
USE_POOLED = USE.replace('"text_embeds": texts, "attention_mask": mask}', '"text_embeds": texts}')
TOLERANCE = 1e-4
ONE_FILE = 1_500_000_000  # bytes of weights; ONNX's own file may not pass 2 GB


def write_onnx(source: ModelSource, out: str) -> None:
    """Write the graphs of both towers and of the score, the tokenizer and the code for inputs.

    Names, ``config.json`` and ``preprocessor_config.json`` are those with which transformers.js reads a CLIP.
    Each graph is run in onnxruntime on shapes that it was not traced with; RuntimeError if it then differs from the
    model by more than 1e-4.
    """
    tokenizer = clip_tokenizer(source.model)
    config, weights = towers_of(source.model)
    towers = Towers(config)
    towers.load_state_dict(weights)
    size, longest = source.model.image_size, source.model.config.text.context_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=longest)
    with new_folder(out) as folder:
        graphs = folder / "onnx"
        graphs.mkdir()
        _write(_Images(towers), graphs / "vision_model.onnx", [_pixels(n, size) for n in (2, 1, 3)], ({0: batch},))
        texts = [_texts(2, longest // 2), _texts(1, longest), _texts(3, 2)]
        _write(_Texts(towers), graphs / "text_model.onnx", texts, ({0: batch, 1: length}, {0: batch, 1: length}))
        _write_scores(towers, graphs / "score.onnx", size, longest)
        tokenizer.save_pretrained(folder)
        copy_code(folder, ("filip_inputs.py",))
        write_json(folder / "config.json", {"model_type": "clip"})
        write_json(folder / "preprocessor_config.json", preprocessor(size))
        use = USE_POOLED if towers.pooled else USE
        write_card(folder, source, "onnx", use.replace("SIZE", str(size)))


class _Images(nn.Module):
    inputs: tuple[str, ...] = ("pixel_values",)
    outputs: tuple[str, ...] = ("image_embeds",)

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.towers.encode_image(pixel_values)


class _Texts(nn.Module):
    inputs: tuple[str, ...] = ("input_ids", "attention_mask")
    outputs: tuple[str, ...] = ("text_embeds",)

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.towers.encode_text(input_ids, attention_mask)


class _Scores(nn.Module):
    outputs: tuple[str, ...] = ("logits_per_image", "logits_per_text")

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers
        self.inputs: tuple[str, ...] = ("image_embeds", "text_embeds")
        if not towers.pooled:
            self.inputs += ("attention_mask",)

    def forward(self, image: Tensor, text: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.towers.logits(image, text, text if mask is None else mask)


def _write_scores(towers: Towers, file: Path, size: int, longest: int) -> None:
    """Write the graph of the similarities of any number of images and texts, as the other graphs encode them."""
    images, texts = torch.export.Dim("images"), torch.export.Dim("texts")
    length = torch.export.Dim("length", min=2, max=longest)
    with torch.no_grad():
        seen = [towers.encode_image(*_pixels(n, size)) for n in (2, 1, 3)]
        text_batches = [_texts(n, tokens) for n, tokens in ((3, longest // 2), (1, longest), (2, 2))]
        examples = [(a, towers.encode_text(*b), b[1]) for a, b in zip(seen, text_batches, strict=True)]
    if towers.pooled:
        _write(_Scores(towers), file, [example[:2] for example in examples], ({0: images}, {0: texts}))
    else:
        dynamic = ({0: images}, {0: texts, 1: length}, {0: texts, 1: length})
        _write(_Scores(towers), file, list(examples), dynamic)


def _write(
    graph: _Images | _Texts | _Scores, file: Path, examples: list[tuple[Tensor, ...]], dynamic: tuple[Any, ...]
) -> None:
    """Trace with the first example, and compare on the others."""
    import onnxruntime

    graph.eval()
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    # The exporter prints to stdout and warns about deprecations inside it and about equal axes.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            examples[0],
            str(file),
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=dynamic,
            dynamo=True,
            verbose=False,
            external_data=weights > ONE_FILE,
        )
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for example in examples[1:]:
        named = dict(zip(graph.inputs, (one.numpy() for one in example), strict=True))
        with torch.no_grad():
            expected = graph(*example)
        pairs = zip(session.run(None, named), (expected,) if isinstance(expected, Tensor) else expected, strict=True)
        difference = max(float((torch.from_numpy(found) - wanted).abs().max()) for found, wanted in pairs)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{file.name} differs from the model by {difference:.1e} in onnxruntime")


def _pixels(images: int, size: int) -> tuple[Tensor, ...]:
    return (torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def _texts(texts: int, length: int) -> tuple[Tensor, ...]:
    """Return ids and mask; the last text is one token shorter than the others, but has at least two."""
    ids = torch.randint(1, BOS, (texts, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if length > 2:
        mask[-1, -1] = 0
    return ids, mask
