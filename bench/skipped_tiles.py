"""Count the tiles of its backward that the Triton backend may skip, because all their weights are negligible.

    python -m bench.skipped_tiles          # after `make demo`; a minute

Takes the gradient of the contrastive loss over all pairs of a test set in one batch, at the model's own temperature and
at others. A weight is negligible below 2^-38 of the largest of its
image (for the other gradient: of its text), which keeps float32 exact; the last columns show a bound that only the 16
bits of the result would justify. A tile has 2 images (for the other gradient 1) and 64 captions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.eval.scorer import load_scorer
from filip.models import load_model
from late_interaction import Similarity, contrastive_loss, score
from late_interaction.packing import LARGEST_WEIGHT
from late_interaction.triton_layout import NEGLIGIBLE, active_tiles, lay_out, scaled_weights


@dataclass
class SkippedTiles:
    model: str = option("results/demo/models/filip.safetensors", "a token-wise model")
    root: str = option("results/demo/corpus/eval", "folder of the test sets")
    cards: list[str] = option(
        ["eval/demo_scenes_new.yaml", "eval/demo_scenes_artist.yaml"], "retrieval cards, one caption an image"
    )
    scales: list[float] = option([], "logit scales; empty = the model's own")


def main(study: SkippedTiles) -> None:
    """Print the table."""
    scorer = load_scorer(study.model, device="cpu")
    own = float(load_model(study.model).logit_scale.exp())
    print("| set | pairs | scale | gradient of | weights above 2^-38 | tiles with one | 2^-28 | tiles |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for path in study.cards:
        data = open_set(load_card(path), study.root)
        samples = [data[number] for number in range(len(data))]
        pixels = (
            torch.stack([scorer.transform(s.image) for s in samples[n : n + 64]]) for n in range(0, len(samples), 64)
        )
        images = torch.cat([scorer.encode_images(batch) for batch in pixels]).float()
        texts = scorer.encode_texts([sample.captions[0] for sample in samples])
        lengths = texts.lengths
        assert lengths is not None
        found = score(images, texts.values.float(), lengths)
        for scale in study.scales or [own]:
            matrices = Similarity(found.i2t.requires_grad_(), found.t2i.requires_grad_())
            loss = contrastive_loss(matrices, torch.tensor([scale])).loss
            of_i2t, of_t2i = torch.autograd.grad(loss, matrices)
            upstream = of_i2t / images.shape[1], of_t2i / lengths
            for side, of in ((1, "images"), (0, "texts")):
                shares = active(upstream, lengths.tolist(), side)
                cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
                print(f"| {path} | {len(lengths)} | {scale:.0f} | {of} | {cells} |", flush=True)


def active(upstream: tuple[Tensor, Tensor], lengths: list[int], side: int) -> list[float]:
    """Return shares of weights and of tiles that are not negligible, by the kernels' bound and by 2^-28."""
    layout = lay_out(lengths, torch.device("cpu"))
    weights, _ = scaled_weights(upstream, side, layout, torch.float32)
    shares = []
    for bound in (NEGLIGIBLE, LARGEST_WEIGHT * 2.0**-28):
        above = tuple(weight * (weight.abs() > bound) for weight in weights)
        tiles = active_tiles((above[0], above[1]), 2 if side == 1 else 1)
        either = ((above[0] != 0) | (above[1] != 0)).sum() / (len(above[0]) * len(lengths))
        shares += [float(either), float(tiles.float().mean())]
    return shares


if __name__ == "__main__":
    run_command(main, SkippedTiles)
