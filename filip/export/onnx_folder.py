"""Write both towers as ONNX graphs with token outputs, for any batch and any length of text."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filip.eval.own_data import retrieval_card
from filip.export.card import model_card
from filip.export.clip_tokenizer import clip_tokenizer
from filip.export.folder import new_folder
from filip.export.hf_folder import copy_code, tower_config
from filip.export.onnx_variants import check_variants, recall_table, write_variant
from filip.export.standalone.filip_towers import Towers
from filip.files import write_json
from filip.pixels import CLIP_MEAN, CLIP_STD
from filip.runs.source import Source
from filip.tokenizer import BOS

USE = """    import onnxruntime
    from transformers import AutoTokenizer
    from filip_inputs import clean, to_pixels            # next to the graphs
    image, text = (onnxruntime.InferenceSession(f"FOLDER/{name}.onnx") for name in ("image", "text"))
    tokenizer = AutoTokenizer.from_pretrained("FOLDER")
    ids = tokenizer([clean("a photo of a cat")], padding=True, truncation=True, return_tensors="np")
    text.run(None, dict(ids))                            # text_embeds [b, n2, d]
    image.run(None, {"pixel_values": to_pixels(picture, SIZE)[None].numpy()})
"""
TOLERANCE = 1e-4
ONE_FILE = 1_500_000_000  # bytes of weights; ONNX's own file may not pass 2 GB


def write_onnx(
    source: Source, out: str, variants: Sequence[str] = (), data: str | None = None, root: str = "."
) -> None:
    """Write ``image.onnx``, ``text.onnx``, tokenizer, ``inputs.json`` (pixels) and the code that prepares inputs.

    Each graph is run in onnxruntime on shapes that it was not traced with; RuntimeError if it then differs from the
    model by more than 1e-4. variants: further graphs, see :mod:`filip.export.onnx_variants`. data: pictures with
    captions on which the recall of all graphs is measured, printed and written into the model card; root: for a card.
    """
    check_variants(variants)
    if data is not None:
        retrieval_card(data)  # its errors are reported before the graphs are written
    tokenizer = clip_tokenizer(source.model)
    towers = Towers(tower_config(source.model))
    towers.load_state_dict(source.model.state_dict())
    size, longest = source.model.image_size, source.model.config.text.context_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=longest)
    with new_folder(out) as folder:
        _write(_Images(towers), folder / "image.onnx", [_pixels(n, size) for n in (2, 1, 3)], ({0: batch},))
        texts = [_texts(2, longest // 2), _texts(1, longest), _texts(3, 2)]
        _write(_Texts(towers), folder / "text.onnx", texts, ({0: batch, 1: length}, {0: batch, 1: length}))
        tokenizer.save_pretrained(folder)
        copy_code(folder, ("filip_inputs.py",))
        write_json(folder / "inputs.json", _inputs(source))
        for variant in variants:
            for graph in ("image", "text"):
                file = folder / f"{graph}.onnx"
                write_variant(file, variant, external=file.with_name(f"{file.name}.data").exists())
        card = model_card(source, "onnx", USE.replace("SIZE", str(size)))
        if data is not None:
            card += f"\n## Variants\n\n{recall_table(folder, variants, data, root)}"
        (folder / "README.md").write_text(card, encoding="utf-8")


def _inputs(source: Source) -> dict[str, Any]:
    """Describe the inputs and outputs of the graphs."""
    model = source.model
    return {
        "image_size": model.image_size,
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "context_length": model.config.text.context_length,
        "token_wise": model.config.interaction == "token_wise",
        "grid": model.image.grid,
    }


class _Images(nn.Module):
    inputs = ("pixel_values",)
    output = "image_embeds"

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.towers.encode_image(pixel_values)


class _Texts(nn.Module):
    inputs = ("input_ids", "attention_mask")
    output = "text_embeds"

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.towers.encode_text(input_ids, attention_mask)


def _write(
    graph: _Images | _Texts, file: Path, examples: list[tuple[Tensor, ...]], dynamic: tuple[Any, ...]
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
            output_names=[graph.output],
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
        difference = float((torch.from_numpy(session.run(None, named)[0]) - expected).abs().max())
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
