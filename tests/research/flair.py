"""FLAIR in plain torch, as its authors' code computes it, at random weights in the names of its checkpoints."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.tokenizer import tokenize
from tests.eval.miniature import SIDE

PATCH, GRID = 8, SIDE // 8
State = dict[str, Tensor]


def attention(queries: Tensor, keys: Tensor, values: Tensor, weights: State, heads: int, mask: Tensor | None = None):
    """Do as nn.MultiheadAttention. weights: in_proj_weight and so on; queries [b, m, d], the others [b, n, d]."""
    inputs = zip((queries, keys, values), *(weights[f"in_proj_{e}"].chunk(3) for e in ("weight", "bias")), strict=True)
    q, k, v = ((x @ w.T + b).unflatten(2, (heads, -1)).transpose(1, 2) for x, w, b in inputs)
    if weights.get("zero") is not None:  # a key and a value of zeros, after the projections
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    seen = ((scores if mask is None else scores + mask).softmax(3) @ v).transpose(1, 2).flatten(2)
    return seen @ weights["out_proj.weight"].T + weights["out_proj.bias"]


def part(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def norm(x: Tensor, state: State, name: str, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def random_state(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    made, draw = {}, torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        made[name] = torch.randn(shape, generator=draw) * (0.3 if len(shape) > 1 else 0.1)
        if name.split(".")[-2:][0].startswith("ln_") and name.endswith("weight"):
            made[name] = 1 + made[name]
    return made


def flair_state() -> State:
    width, dim = 64, 64
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (GRID * GRID + 1, width),
        "visual.conv1.weight": (width, 3, PATCH, PATCH),
        "positional_embedding": (77, width),
        "token_embedding.weight": (49408, width),
        "image_post.proj": (width, dim),
        "text_post.proj": (width, dim),
        "logit_scale": (),
        "logit_bias": (),
    }
    norms = ["visual.ln_pre", "visual.ln_post", "ln_final", *(f"visual_proj.ln_{x}" for x in "qkv")]
    linear = {"visual_proj.attn.in_proj_": (3 * dim, dim), "visual_proj.attn.out_proj.": (dim, dim)}
    for prefix in ("visual.transformer", "transformer"):
        for block in (f"{prefix}.resblocks.{n}" for n in range(2)):
            norms += [f"{block}.ln_1", f"{block}.ln_2"]
            linear |= {f"{block}.attn.in_proj_": (3 * width, width), f"{block}.attn.out_proj.": (width, width)}
            linear |= {f"{block}.mlp.c_fc.": (4 * width, width), f"{block}.mlp.c_proj.": (width, 4 * width)}
    shapes |= {f"{name}.{end}": (width,) for name in norms for end in ("weight", "bias")}
    for name, shape in linear.items():
        shapes |= {f"{name}weight": shape, f"{name}bias": shape[:1]}
    return random_state(shapes, 0)


def blocks(x: Tensor, state: State, mask: Tensor | None = None) -> Tensor:
    for n in range(2):
        own = part(state, f"transformer.resblocks.{n}.")
        y = norm(x, own, "ln_1")
        x = x + attention(y, y, y, part(own, "attn."), 1, mask)  # heads of 64 channels
        y = F.gelu(norm(x, own, "ln_2") @ own["mlp.c_fc.weight"].T + own["mlp.c_fc.bias"])
        x = x + y @ own["mlp.c_proj.weight"].T + own["mlp.c_proj.bias"]
    return x


def flair_images(state: State, pixels: Tensor) -> Tensor:
    own = part(state, "visual.")
    x = F.conv2d(pixels, own["conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    x = torch.cat([own["class_embedding"].expand(len(x), 1, -1), x], 1) + own["positional_embedding"]
    return norm(blocks(norm(x, own, "ln_pre"), own), own, "ln_post")[:, 1:] @ state["image_post.proj"]


def flair_texts(state: State, texts: Sequence[str]) -> Tensor:
    ids, lengths = tokenize(list(texts), 77)
    ids = F.pad(ids, (0, 77 - ids.shape[1]))
    x = state["token_embedding.weight"][ids] + state["positional_embedding"]
    own = {k: v for k, v in state.items() if k.startswith("transformer.")}
    x = norm(blocks(x, own, torch.full((77, 77), -torch.inf).triu(1)), state, "ln_final")
    return x[torch.arange(len(x)), lengths - 1] @ state["text_post.proj"]


def flair_similarity(state: State, pixels: Tensor, texts: Sequence[str]) -> Tensor:
    patches, vectors = flair_images(state, pixels), flair_texts(state, texts)
    pool = part(state, "visual_proj.")
    keys, values, query = (norm(x, pool, f"ln_{n}") for x, n in ((patches, "k"), (patches, "v"), (vectors, "q")))
    weights = part(pool, "attn.") | {"zero": torch.zeros(1)}
    result = attention(query.expand(len(pixels), -1, -1), keys, values, weights, 8)
    return F.cosine_similarity(result, vectors[None], dim=-1)
