"""Write smaller variants of the ONNX graphs, and measure what recall they lose on the user's pictures and captions."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.own_data import retrieval_card
from filip.progress import say

VARIANTS = ("fp16", "int8")
WAYS = ("i2t", "t2i")


def check_variants(variants: Sequence[str]) -> None:
    """Raise UserError for a name that is not one of :data:`VARIANTS`."""
    if unknown := [name for name in variants if name not in VARIANTS]:
        raise UserError(f"variants={unknown[0]}: choose from {', '.join(VARIANTS)}")


def write_variant(file: Path, variant: str, external: bool) -> None:
    """Write e.g. ``image_int8.onnx`` next to ``image.onnx``. external: the weights are too many for one file.

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
        found = _recall(folder, variant, card, root) if variant else whole
        lost = {way: [a - b for a, b in zip(whole[way], found[way], strict=True)] for way in WAYS} if variant else {}
        cells = [_percent(values.get(way, [])) for values in (found, lost) for way in WAYS]
        size = f"{megabytes(folder, variant):.1f}"
        lines.append(f"| {variant or 'float32'} | {size} | {' | '.join(cells)} |")
        say(
            f"{variant or 'float32'}, {size} MB: R@1/10 of {card.name} i2t {cells[0]} %, t2i {cells[1]} %"
            + (f"; lost {cells[2]} and {cells[3]} points" if variant else "")
        )
    return "\n".join(lines) + "\n"


def megabytes(folder: Path, variant: str) -> float:
    """Return the size of both graphs in MB."""
    end = f"_{variant}" if variant else ""
    files = [file for tower in ("image", "text") for file in folder.glob(f"{tower}{end}.onnx*")]
    return sum(file.stat().st_size for file in files) / 1e6


def _recall(folder: Path, variant: str, card: BenchmarkCard, root: str) -> dict[str, list[float]]:
    """Return R@1 and R@10 in percent, both ways."""
    from filip.eval.encode_set import Context
    from filip.eval.prompts import Prompt
    from filip.eval.protocols.retrieval import retrieval_benchmark
    from filip.eval.scorer import load_scorer

    name = f"onnx:{folder}{':' if variant else ''}{variant}"
    bare = Prompt("", "")
    found = retrieval_benchmark(load_scorer(name), card, (bare, bare), context=Context(root))
    return {way: [100 * float(found[way][rank]) for rank in ("r1", "r10")] for way in WAYS}


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
