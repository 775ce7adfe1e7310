"""Write both towers and their similarity as ONNX graphs with token outputs, for any batch and any length of text."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.own_data import retrieval_card
from filip.export.card import write_card
from filip.export.hf_folder import clip_tokenizer, copy_code, new_folder, preprocessor, towers_of
from filip.export.standalone.filip_towers import Towers
from filip.files import write_json
from filip.pixels import CLIP_MEAN, CLIP_STD
from filip.progress import say
from filip.runs.source import ModelSource
from filip.tokenizer import BOS

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


def write_onnx(
    source: ModelSource, out: str, variants: Sequence[str] = (), data: str | None = None, root: str = "."
) -> None:
    """Write the graphs of both towers and of the score, tokenizer, ``inputs.json`` and the code for inputs.

    Names, ``config.json`` and ``preprocessor_config.json`` are those with which transformers.js reads a CLIP.
    Each graph is run in onnxruntime on shapes that it was not traced with; RuntimeError if it then differs from the
    model by more than 1e-4. variants: further graphs, see :mod:`filip.export.onnx_folder`. data: pictures with
    captions on which the recall of all graphs is measured, printed and written into the model card; root: for a card.
    """
    check_variants(variants)
    if data is not None:
        retrieval_card(data)  # its errors are reported before the graphs are written
    tokenizer = clip_tokenizer(source.model)
    config, weights = towers_of(source.model)
    towers = Towers(config)
    towers.load_state_dict(weights)
    size, longest = source.model.image_size, source.model.config.text.context_length
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=longest)
    with new_folder(out) as folder:
        (folder / "onnx").mkdir()
        _write(_Images(towers), graph_file(folder, "image"), [_pixels(n, size) for n in (2, 1, 3)], ({0: batch},))
        texts = [_texts(2, longest // 2), _texts(1, longest), _texts(3, 2)]
        _write(_Texts(towers), graph_file(folder, "text"), texts, ({0: batch, 1: length}, {0: batch, 1: length}))
        _write_scores(towers, graph_file(folder, "score"), size, longest)
        tokenizer.save_pretrained(folder)
        copy_code(folder, ("filip_inputs.py",))
        write_json(folder / "inputs.json", _inputs(source))
        write_json(folder / "config.json", {"model_type": "clip"})
        write_json(folder / "preprocessor_config.json", preprocessor(size))
        for variant in variants:
            for graph in ("image", "text"):
                file = graph_file(folder, graph)
                write_variant(file, variant, external=file.with_name(f"{file.name}.data").exists())
        use = USE_POOLED if towers.pooled else USE
        measured = "" if data is None else f"\n## Variants\n\n{recall_table(folder, variants, data, root)}"
        write_card(folder, source, "onnx", use.replace("SIZE", str(size)), measured)


GRAPHS = {"image": "vision_model", "text": "text_model", "score": "score"}


def graph_file(folder: Path, graph: str, variant: str = "") -> Path:
    """Return the file of one of GRAPHS, which transformers.js looks for by that name."""
    return folder / "onnx" / f"{GRAPHS[graph]}{'_' if variant else ''}{variant}.onnx"


def _inputs(source: ModelSource) -> dict[str, Any]:
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


VARIANTS = ("fp16", "int8")
WAYS = ("i2t", "t2i")


def check_variants(variants: Sequence[str]) -> None:
    """Raise UserError for a name that is not one of :data:`VARIANTS`."""
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"variants={unknown[0]}: choose from {', '.join(VARIANTS)}")


def write_variant(file: Path, variant: str, external: bool) -> None:
    """Write e.g. ``vision_model_int8.onnx`` beside the whole graph. external: the weights are too many for one file.

    fp16 computes in half precision; inputs and outputs stay float32. int8 quantises the weights of matrix products and
    embeddings, and activations as they come (onnxruntime's dynamic quantisation): a quarter of the size. Weights take 7
    of the 8 bits: a CPU without VNNI adds two products in 16 bits, where 8-bit weights would overflow and be cut off.
    Convolutions, which onnxruntime does not compute in int8 on CPUs, keep their weights in half precision.
    """
    target = file.with_name(f"{file.stem}_{variant}.onnx")
    with _quiet():
        if variant == "fp16":
            import onnx
            from onnxruntime.transformers.float16 import convert_float_to_float16

            half: Any = convert_float_to_float16(str(file), keep_io_types=True)
            onnx.save(half, str(target), save_as_external_data=external, location=f"{target.name}.data")
        else:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                file,
                target,
                op_types_to_quantize=["MatMul", "Gemm", "Gather"],  # onnxruntime has no int8 convolution on CPUs
                per_channel=True,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                use_external_data_format=external,
            )
            _halve_convolutions(target, external)


def _halve_convolutions(file: Path, external: bool) -> None:
    """Store the weights of convolutions in float16; a cast, which is computed once at the start, gives float32."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(file))
    graph = model.graph
    used = {node.input[1] for node in graph.node if node.op_type == "Conv"}
    for tensor in graph.initializer:
        if tensor.name in used and tensor.data_type == TensorProto.FLOAT:
            name, half = tensor.name, f"{tensor.name}_float16"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), half))
            graph.node.insert(0, helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    onnx.save(model, str(file), save_as_external_data=external, location=f"{file.name}.data")


def recall_table(folder: Path, variants: Sequence[str], data: str, root: str) -> str:
    """Return the recall of float32 graphs and of each variant on ``data``, as Markdown; a line on stderr for each."""
    card = retrieval_card(data)
    lines = [
        f"| {card.name} | MB | i2t R@1 / R@10 | t2i R@1 / R@10 | lost i2t | lost t2i |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    whole = _recall(folder, "", card, root)
    for variant in ("", *variants):
        recalls = _recall(folder, variant, card, root) if variant else whole
        lost = {way: [a - b for a, b in zip(whole[way], recalls[way], strict=True)] for way in WAYS} if variant else {}
        cells = [_percent(values.get(way, [])) for values in (recalls, lost) for way in WAYS]
        size = f"{megabytes(folder, variant):.1f}"
        lines.append(f"| {variant or 'float32'} | {size} | {' | '.join(cells)} |")
        say(
            f"{variant or 'float32'}, {size} MB: R@1/10 of {card.name} i2t {cells[0]} %, t2i {cells[1]} %"
            + (f"; lost {cells[2]} and {cells[3]} points" if variant else "")
        )
    return "\n".join(lines) + "\n"


def megabytes(folder: Path, variant: str) -> float:
    """Return the size of both graphs in MB."""
    graphs = [graph_file(folder, graph, variant) for graph in ("image", "text")]
    files = [file for graph in graphs for file in graph.parent.glob(f"{graph.name}*")]
    return sum(file.stat().st_size for file in files) / 1e6


def _recall(folder: Path, variant: str, card: BenchmarkCard, root: str) -> dict[str, list[float]]:
    """Return R@1 and R@10 in percent, both ways."""
    from filip.eval.encode_set import Context
    from filip.eval.prompts import Prompt
    from filip.eval.protocols.retrieval import retrieval_benchmark
    from filip.eval.scorer import load_scorer

    name = f"onnx:{folder}{':' if variant else ''}{variant}"
    bare = Prompt("", "")
    numbers = retrieval_benchmark(load_scorer(name), card, (bare, bare), context=Context(root))
    return {way: [100 * float(numbers[way][rank]) for rank in ("r1", "r10")] for way in WAYS}


def _percent(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.1f}" for value in values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger, through which onnxruntime advises on preprocessing and names truncated values."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
