"""One vector a side without contrast: ridge regression from a frozen stem's cells to the words of a caption.

    filip eval model=ridge:results/demo/data/demo data=[eval/demo_scenes_new.yaml] root=results/demo/corpus/eval

An image is the largest and the mean value over its cells of random ReLU features of each cell, a caption its bag of
tokens, less what is in all of them, and rare tokens count more. One linear map from the one to the other is fitted in
closed form to the pairs of ``FOLDER/shards``; vectors are compared by their cosine. It is the control of what one
vector can hold: it finds scenes, and cannot know whose colour is whose. ``ridge:FOLDER:pairs`` adds the pairs of
neighbouring tokens ("red cat") to the bag. The settings are the best of a few on demo_scenes_search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.encoders import FilipEncoder, Loading
from filip.models import DualEncoder
from filip.study import resolve
from filip.train.engine import resolve_batching, settle_precision
from filip.train.loop import initial_model
from filip.train.ranks import Ranks
from filip.train.training_data import fill, training_loader

FEATURES = 512  # random ones of a cell
RIDGE = 1e-3  # share of the features' mean variance
RARE = 0.5  # the weight of a token is its share of the captions, to the power of -RARE
LEAST = 5  # captions that have a token
PAIRS = 65_537  # columns among which pairs of tokens are spread; a prime


Batch = tuple[Tensor, Tensor, Tensor]


class RidgeEncoder(FilipEncoder):
    @staticmethod
    def from_name(folder: str, loading: Loading) -> RidgeEncoder:
        folder, _, option = folder.partition(":")
        if option not in ("", "pairs"):
            raise UserError(f"model=ridge:{folder}:{option}: `:pairs` or nothing, not `{option}`")
        source = f"data.sources=[{{shards: {folder}/shards, captions: {folder}/captions}}]"
        config = resolve("experiment=demo_small", "model.interaction=pooled", "model.pooling=mean", source)
        ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
        settle_precision(config, ranks)
        model = initial_model(config).eval()
        loader = training_loader(config, model, resolve_batching(config, 1), ranks)
        fill(loader.stream, model, config.precision, ranks.device, None)
        batches = [(batch["pixels"], batch["ids"], batch["lengths"]) for batch in loader]
        return RidgeEncoder(model, batches, loading, pairs=bool(option))

    @torch.inference_mode()
    def __init__(self, model: DualEncoder, batches: Sequence[Batch], loading: Loading, pairs: bool = False) -> None:
        """batches: feature maps [b, channels, rows, columns], and ids [b, n] and lengths [b] of the captions."""
        super().__init__(model, "ridge", loading=loading)
        first = batches[0][0].float()
        self.center, self.scale = first.mean((0, 2, 3)), first.std((0, 2, 3))
        draw = torch.Generator().manual_seed(0)
        self.random = torch.randn(len(self.center), FEATURES, generator=draw) * len(self.center) ** -0.5
        self.bias = torch.randn(FEATURES, generator=draw)
        features = torch.cat([self._features(maps) for maps, _, _ in batches]).double()
        self.pairs = pairs
        counts = torch.stack([self._bags(ids, lengths).sum(0) for _, ids, lengths in batches]).sum(0)
        self.spoken = (counts >= LEAST).nonzero()[:, 0]
        bags = torch.cat([self._bags(ids, lengths)[:, self.spoken] for _, ids, lengths in batches]).double()
        self.share, self.mean = bags.mean(0), features.mean(0)
        features -= self.mean
        second = features.T @ features / len(features)
        second.diagonal().add_(RIDGE * second.diagonal().mean())
        targets = (bags - self.share) * self.share**-RARE
        self.map = torch.linalg.solve(second, features.T @ targets / len(features))
        self.details = {"numbers": f"{len(self.spoken):,}"}
        targets_are = "tokens and pairs of tokens" if pairs else "tokens"
        say(f"ridge regression from {features.shape[1]} features to {len(self.spoken):,} {targets_are}")

    def _features(self, maps: Tensor) -> Tensor:
        cells = (maps.float().flatten(2).transpose(1, 2) - self.center) / self.scale
        seen = F.relu(cells @ self.random + self.bias)
        return torch.cat([seen.amax(1), seen.mean(1)], dim=1)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        maps = self.model.image.stem(pixels)
        return F.normalize((self._features(maps).double() - self.mean) @ self.map).float()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        ids, lengths = self._ids(texts)
        bags = self._bags(ids, lengths)[:, self.spoken].double()
        return F.normalize((bags - self.share) * self.share**-RARE).float(), None

    def _bags(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return [b, columns] float32: 1 for each token of a caption and, if asked, each two tokens side by side."""
        size = self.model.config.text.vocab_size
        there = torch.arange(ids.shape[1]) < lengths[:, None]
        bags = torch.zeros(len(ids), size).scatter_add_(1, ids.long(), there.float()).clamp_(max=1)
        if not self.pairs:
            return bags
        both = (ids[:, :-1].long() * size + ids[:, 1:].long()) % PAIRS
        columns = torch.zeros(len(ids), PAIRS).scatter_add_(1, both, there[:, 1:].float()).clamp_(max=1)
        return torch.cat([bags, columns], dim=1)
