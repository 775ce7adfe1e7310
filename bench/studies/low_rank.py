"""Measure the cost of a narrower embedding: recall after two fits of lower rank, on held-out pictures.

    python -m bench.studies.low_rank      # after `make demo`; a minute

``filip train narrow`` takes the principal directions of all tokens, shared by both towers. The other fit is the best
one to the products f . g of image tokens f and text tokens g. With A and B their second moments it is, of all
matrices of rank k, A^-1/2 [A^1/2 B^1/2]_k B^-1/2 (Eckart and Young; [.]_k keeps the k largest singular values), which
gives each side its own map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.eval.scorer import Texts
from filip.models import load_model
from filip.train.narrow import Narrow, Pairs, encode, fit, recalls, second_moment


@dataclass
class LowRank:
    models: list[str] = option(
        ["results/demo/models/clip.safetensors", "results/demo/models/filip.safetensors"], "models to narrow"
    )
    root: str = option("results/demo/corpus/eval", "folder of the test set")
    card: str = option("eval/demo_scenes_new.yaml", "retrieval card; half of it is for the fit")
    channels: list[int] = option([96, 64, 32, 16], "widths")


def main(study: LowRank) -> None:
    """Print the table."""
    print("| model | channels | fit | i2t R@1 / R@10 | t2i R@1 / R@10 |\n| --- | ---: | --- | --- | --- |")
    for path in study.models:
        model = load_model(path)
        options = Narrow(model=path, data=study.card, out="", device="cpu")
        encoded = encode(model, open_set(load_card(study.card), study.root), study.card, options)
        for kind, pairs in encoded.items():
            fitted = torch.arange(len(pairs.images)) % 2 == 0
            held, parts = pairs.part(~fitted), [one.part(fitted) for one in encoded.values()]
            name = f"{model.config.name} ({model.config.interaction}), scored {kind}"
            print(row(name, model.config.embed_dim, "", held))
            for k in study.channels:
                print(row(name, k, "principal directions", held.mapped(fit(parts, k))))
                print(row(name, k, "products", mapped_by_products(held, parts, k)), flush=True)


def row(name: str, channels: int, how: str, pairs: Pairs) -> str:
    cells = [" / ".join(f"{100 * value:.1f}" for value in values) for values in recalls(pairs).values()]
    return f"| {name} | {channels} | {how} | {' | '.join(cells)} |"


def mapped_by_products(pairs: Pairs, parts: list[Pairs], rank: int) -> Pairs:
    moments = [
        torch.stack([second_moment(side) for side in sides]).sum(0)
        for sides in ([p.images.flatten(0, -2) for p in parts], [p.texts.values for p in parts])
    ]
    (image_root, image_inverse), (text_root, text_inverse) = map(root_and_inverse, moments)
    left, values, right = torch.linalg.svd(image_root @ text_root)
    scale = values[:rank].sqrt()[:, None]
    maps = scale * (left.T[:rank] @ image_inverse), scale * (right[:rank] @ text_inverse)
    images, texts = (
        F.normalize(x @ m.T.float(), dim=-1) for x, m in zip((pairs.images, pairs.texts.values), maps, strict=True)
    )
    return Pairs(images, Texts(texts, pairs.texts.lengths), pairs.owner)


def root_and_inverse(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root and its pseudo-inverse, which maps directions that no token has to nothing."""
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp_min(0).sqrt()
    inverse = torch.where(values > 1e-10 * values.max(), 1 / root, torch.zeros_like(root))
    return (vectors * root) @ vectors.T, (vectors * inverse) @ vectors.T


if __name__ == "__main__":
    run_command(main, LowRank)
