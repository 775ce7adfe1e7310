"""Count the arithmetic and the memory of both towers, on the meta device: nothing is computed or allocated."""

from __future__ import annotations

import copy

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from filip.models.config import ModelConfig
from filip.models.dual_encoder import DualEncoder, build_model

# Values per token and channel that autograd keeps of one pre-norm block (counted with saved-tensor hooks): both norms'
# and both MLP layers' inputs, q/k/v, the attention's output, the 4-fold hidden layer before and after its activation.
# The text tower's fused q/k/v is copied once more. Then, per tower, the layers before and after the blocks.
IMAGE_BLOCK, TEXT_BLOCK, IMAGE_ENDS, TEXT_ENDS = 16, 20, 4, 3
# Bytes per value: autocast keeps norms and the residual stream in fp32 and the rest in bf16.
VALUE_BYTES = {"fp32": 4.0, "bf16": 2.4, "fp16": 2.0}


def encoder_flops(model: ModelConfig, words: int, stem_computes: bool = True) -> int:
    """Return the floating-point operations of a pair's forward pass, as torch counts them: two per multiply-add.

    words: tokens of its caption. stem_computes: false with data.feature_cache.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where it is installed

    with torch.device("meta"):
        built = build_model(model)
        pixels = torch.zeros(1, 3, built.image_size, built.image_size)
        ids = torch.zeros(1, words, dtype=torch.int64)
        if built.image.stem is not None and not stem_computes:
            pixels = built.image.stem(pixels)
    # it does not know how many flops torch's fused attention for the CPU takes
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        built(pixels, ids, torch.tensor([words]))
    return counter.get_total_flops()


def activation_bytes(model: DualEncoder, precision: str, images: int, captions: int = 1) -> int:
    """Return the bytes that the backward pass needs of both towers for ``images`` images per forward pass.

    Captions count at full length. ``captions``: how many of each image the text tower encodes.

    With gradient checkpointing only each block's input is kept, plus the recomputation of one block. For a tower
    that does not learn only the output is kept, and the working memory of one block. Adapters do not reduce
    this: each needs the input of its layer.
    """
    config = model.config
    rows, columns = model.image.grid
    patch_rows, patch_columns = model.image.patch_size
    tokens = rows * columns + model.image.prefix_tokens
    patches = rows * columns * patch_rows * patch_columns * 3 + stem_values(model)
    image = tokens * model.image.width
    text = captions * config.text.context_length * config.text.width
    towers = (
        (image, model.image.depth, IMAGE_BLOCK, IMAGE_ENDS, model.image.trunk),
        (text, config.text.layers, TEXT_BLOCK, TEXT_ENDS, model.text.blocks),
    )
    values, passing = float(patches), 0
    for width, depth, block, ends, layers in towers:
        learns = any(parameter.requires_grad for parameter in layers.parameters())
        whole = learns and not config.gradient_checkpointing
        passing = passing if whole else max(passing, block * width)
        values += width * (1 if not learns else ends + depth * (block if whole else 1))
    return int(images * (values + passing) * VALUE_BYTES[precision])


def stem_values(model: DualEncoder) -> int:
    """Count the numbers that autograd keeps of a stem that learns, for one image, on the meta device."""
    stem = model.image.stem
    if stem is None or not any(parameter.requires_grad for parameter in stem.parameters()):
        return 0
    stem = copy.deepcopy(stem).to("meta")
    values: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 4 and tensor.shape[0] == 1:  # the image's: every weight has several outputs
            values[tensor.untyped_storage()._cdata] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = stem(torch.zeros(1, 3, model.image_size, model.image_size, device="meta"))
    del output
    return sum(values.values())
