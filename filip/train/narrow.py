"""A model at a smaller embedding width, to start a training from: ``filip train narrow``.

    filip train narrow model=open_clip:ViT-B-32:laion2b_s34b_b79k embed_dim=256 data=my_pairs out=clip256.safetensors
    filip train experiment=warm_start init_from=clip256.safetensors …

The towers stay as they are; their projections become narrower, by the best fit of that rank to a sample of your
pictures and captions. Half of the sample is for the fit, the other half shows what recall it costs.

Vectors f of unit length are replaced by P f, with orthonormal rows in P [k, d], and normalised again. P holds the k
principal directions of the sample: of all such P, those that lose the least of f, E |f - P'P f|^2 (Eckart and Young).
Both towers share P, so an image token and a word that were equal stay so.

The best fit of rank k to the *products* f . g of images with texts gives each side its own map. It is worse
(bench/studies/low_rank.py measures both): its maps stretch, and what is compared are vectors that were normalised
again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filip.command import MISSING, option, run_command
from filip.device import resolve
from filip.errors import UserError
from filip.eval.datasets import Batch, EvalSet, Sample
from filip.eval.encode_set import ImageSource, collect
from filip.eval.encoders import FilipEncoder, Loading
from filip.eval.formats import open_set
from filip.eval.metrics import retrieval_hits
from filip.eval.own_data import retrieval_card
from filip.eval.scorer import Texts, TokenScorer
from filip.interaction import pooled_similarity, score
from filip.models import DualEncoder, ModelConfig, save_model
from filip.progress import say
from filip.train.warm_start import SOURCES, check_init_from, load_initial


@dataclass
class Narrow:
    """Options of the command."""

    model: str = option(MISSING, "what init_from= takes: open_clip:…, hf:… (a CLIP), or a file of ours")
    embed_dim: int = option(256, "channels of the narrower embeddings", at_least=1)
    data: str = option(MISSING, "pictures with captions: a folder, a table or a card")
    root: str = option(".", "folder below which the data set of a card lies")
    out: str = option(MISSING, "file to write, for init_from=", writes="file")
    images: int = option(2000, "pictures of the sample, drawn at random; half of them are for the fit", at_least=4)
    batch_size: int = option(64, "images at a time", at_least=1)
    workers: int = option(0, "processes that decode images", at_least=0)
    device: str = option("auto", "torch device; auto = a GPU where there is one")
    seed: int = option(0, "seed of the draw", at_least=0)


@dataclass
class Pairs:
    """Encoded pictures [n, n1, d] or [n, d], their texts, and the picture of each text [t] int64."""

    images: Tensor
    texts: Texts
    owner: Tensor

    def part(self, chosen: Tensor) -> Pairs:
        """Return the pictures where ``chosen`` [n] is true, with their texts."""
        numbers = chosen.cumsum(0) - 1
        texts = chosen[self.owner].nonzero().squeeze(1)
        return Pairs(self.images[chosen], self.texts.select(texts), numbers[self.owner[texts]])

    def mapped(self, directions: Tensor) -> Pairs:
        """Project every vector onto ``directions`` [k, d] and make it a unit vector again."""
        images, texts = (F.normalize(x @ directions.T, dim=-1) for x in (self.images, self.texts.values))
        return Pairs(images, Texts(texts, self.texts.lengths), self.owner)


def narrow(config: Narrow) -> None:
    """Write a model with a narrower embedding, fitted to one's own pictures and captions, to start a training from."""
    card = retrieval_card(config.data)
    data = open_set(card, config.root)
    model = _trained_model(config.model)
    width = model.config.embed_dim
    if not 0 < config.embed_dim < width:
        raise UserError(f"embed_dim={config.embed_dim}: {config.model} has {width} channels; give fewer of them")
    sample = _Sample(data, config.images, config.seed)
    encoded = encode(model, sample, card.name, config)
    fitted = torch.arange(len(next(iter(encoded.values())).images)) % 2 == 0
    if int(fitted.sum()) * 2 < 4:
        raise UserError(f"data={config.data} has too few pictures to fit to: {len(fitted)}")
    directions = fit([pairs.part(fitted) for pairs in encoded.values()], config.embed_dim)
    losses = {}
    for kind, pairs in encoded.items():
        held = pairs.part(~fitted)
        before, after = recalls(held), recalls(held.mapped(directions))
        losses[kind] = {"before": before, "after": after}
        say(
            f"{kind}, {width} to {config.embed_dim} channels, {len(held.images):,} pictures not fitted to: "
            + "; ".join(f"{way} R@1/10 {_percent(before[way])} to {_percent(after[way])} %" for way in before)
        )
    apply(model, directions)
    save_model(config.out, model, {"narrowed": config.model, "recall": losses})
    say(f"wrote {config.out}: {config.model} with {config.embed_dim} channels, for init_from=")


def _trained_model(name: str) -> DualEncoder:
    """Return the model, a CLIP of another project as the pooled model that it is.

    Raises UserError if it is an image tower alone.
    """
    check_init_from(name, "model")
    prefix = name.partition(":")[0]
    model = None if prefix == "timm" else load_initial(name, ModelConfig())
    if model is None or (prefix in SOURCES and not model.image.has_cls):
        raise UserError(
            f"model={name} brings an image tower alone, whose projection is still to be trained: give such a training "
            "the width that you want (model.embed_dim=…) and init_from= as it is"
        )
    if model.config.pooling != "ends":
        raise UserError(
            f"model={name} pools by {model.config.pooling}; only models that compare tokens, or [CLS] and [EOS], can "
            "be narrowed"
        )
    if prefix in SOURCES:
        model.set_interaction("pooled")
    return model.eval()


def fit(parts: list[Pairs], rank: int) -> Tensor:
    """Return the directions [rank, d] for these vectors.

    Both sides and all parts (pooled, token-wise) count the same.
    """
    sides = [side for part in parts for side in (part.images.flatten(0, -2), part.texts.values)]
    return principal_directions(sum((second_moment(side) for side in sides[1:]), second_moment(sides[0])), rank).float()


@torch.no_grad()
def apply(model: DualEncoder, directions: Tensor) -> None:
    """Make ``model`` project onto ``directions`` [k, d] after its own projections, in place."""
    for tower in (model.image, model.text):
        narrower = nn.Linear(tower.projection.in_features, len(directions), bias=False)
        narrower.weight.copy_(directions.to(tower.projection.weight.device) @ tower.projection.weight)
        tower.projection = narrower
    model.config.embed_dim = len(directions)
    model.set_loss_parameters({})  # their shapes may follow from the width


def recalls(pairs: Pairs) -> dict[str, list[float]]:
    """Return R@1 and R@10 both ways, as fractions; s^I ranks texts and s^T pictures."""
    texts, lengths = pairs.texts.values, pairs.texts.lengths
    i2t, t2i = pooled_similarity(pairs.images, texts) if lengths is None else score(pairs.images, texts, lengths)
    own = torch.arange(len(pairs.images))
    hits = {
        "i2t": retrieval_hits(i2t, own, pairs.owner, (1, 10)),
        "t2i": retrieval_hits(t2i.T, pairs.owner, own, (1, 10)),
    }
    return {way: found.mean(0).tolist() for way, found in hits.items()}


class _AllTokens(FilipEncoder):
    """An encoder that gives every token of an image, including those before the patches, and every token of a text."""

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.image(pixels.to(self.device)).float(), dim=-1)


def encode(model: DualEncoder, data: EvalSet, title: str, config: Narrow) -> dict[str, Pairs]:
    """Encode a set token-wise, as training will compare; for a model that pools, by its [CLS] and [EOS] too."""
    device = str(resolve(config.device))
    scorer = TokenScorer(_AllTokens(model.to(device), config.model, loading=Loading(device=device, tokens=True)))
    captions: list[str] = []
    owner: list[int] = []

    def keep(images: Tensor, batch: Batch) -> tuple[Tensor, list[list[str]]]:
        for key, own in zip(batch.keys, batch.captions, strict=True):
            if not own:
                raise UserError(f"{title}: image {key} has no caption")
        return images.cpu(), batch.captions

    parts = collect(scorer, ImageSource(data, title, config.batch_size, config.workers), keep)
    for number, own in enumerate(own for _, of_batch in parts for own in of_batch):
        captions += own
        owner += [number] * len(own)
    owners = torch.tensor(owner, dtype=torch.int64)
    images = torch.cat([features for features, _ in parts])
    texts = scorer.encode_texts(captions).to("cpu")
    found = {"token-wise": Pairs(images[:, model.image.prefix_tokens :], texts, owners)}
    if model.config.interaction == "pooled":
        assert texts.lengths is not None
        ends = Texts(texts.values[texts.lengths.cumsum(0) - 1], None)
        found["pooled"] = Pairs(images[:, 0], ends, owners)
    return found


class _Sample(EvalSet):
    """A random sample of ``count`` samples of a set, or all of a smaller one."""

    def __init__(self, data: EvalSet, count: int, seed: int) -> None:
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        self.data, self.places = data, sorted(order[:count].tolist())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Sample:
        return self.data[self.places[index]]


def _percent(values: list[float]) -> str:
    return " / ".join(f"{100 * value:.1f}" for value in values)


def second_moment(tokens: Tensor) -> Tensor:
    """Return the mean of f f' [d, d] over ``tokens`` [n, d], float64.

    It is not centred: a projection without bias keeps no mean.
    """
    wide = tokens.double()
    return wide.T @ wide / len(wide)


def principal_directions(moment: Tensor, rank: int) -> Tensor:
    """Return the ``rank`` eigenvectors of a second moment [d, d] with the largest eigenvalues.

    They are rows [rank, d], float64.
    """
    return torch.linalg.eigh(moment).eigenvectors.T.flip(0)[:rank].contiguous()


if __name__ == "__main__":
    run_command(narrow, Narrow)
