"""One vector a side without contrast: ridge regression from a frozen stem's cells to the words of a caption.

    filip eval model=ridge:results/demo/data/demo data=[eval/demo_scenes_new.yaml] root=results/demo/corpus/eval

An image is the largest and the mean value over its cells of random ReLU features of each cell, a caption its bag of
tokens, less what is in all of them, and rare tokens count more. One linear map from the one to the other is fitted in
closed form to the pairs of ``FOLDER/shards``; vectors are compared by their cosine. It finds scenes, and cannot know
whose colour is whose.

``ridge:FOLDER:product`` can. Its map is fitted from the mean of the cells' features to the words of the caption, and
gives each cell a score of each word. An image is the root of the sum over its cells of products of two scores, of a
word that ever stands before another and of one that ever stands behind one; a caption is its pairs of neighbouring
words ("red cat"). A pair that was never trained has both factors. Then it is fitted again, cell by cell, with each pair
of a caption at the three cells where it scores highest. It is told nothing about words but their places.

The settings are the best of a few on demo_scenes_search, and on binding_search for the product.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from filip.common.errors import UserError
from filip.common.progress import say
from filip.eval.encoders import FilipEncoder, Loading
from filip.loading.stem_maps import fill
from filip.models import DualEncoder
from filip.study import resolve
from filip.text.tokenizer import token_texts
from filip.train.engine import resolve_batching, settle_precision
from filip.train.loop import initial_model
from filip.train.ranks import Ranks
from filip.train.training_data import training_loader

FEATURES = 512  # random ones of a cell
RIDGE = 1e-3  # share of the features' mean variance
RARE = 0.5  # the weight of a token is its share of the captions, to the power of -RARE
LEAST = 5  # captions that have a token or a word
CELLS = 3  # where a pair is taken to be

Batch = tuple[Tensor, Tensor, Tensor]


class RidgeEncoder(FilipEncoder):
    @staticmethod
    def from_name(folder: str, loading: Loading) -> RidgeEncoder:
        folder, _, option = folder.partition(":")
        if option not in ("", "product"):
            raise UserError(f"model=ridge:{folder}:{option}: `:product` or nothing, not `{option}`")
        source = f"data.sources=[{{shards: {folder}/shards, captions: {folder}/captions}}]"
        config = resolve("experiment=demo", "model.interaction=pooled", "model.pooling=mean", source)
        ranks = Ranks(0, 1, 0, 1, torch.device("cpu"))
        settle_precision(config, ranks)
        model = initial_model(config).eval()
        loader = training_loader(config, model, resolve_batching(config, 1), ranks)
        fill(loader.stream, model, config.precision, ranks.device, lambda: False)
        batches = [(batch["pixels"], batch["ids"], batch["lengths"]) for batch in loader]
        return (ProductEncoder if option else RidgeEncoder)(model, batches, loading)

    @torch.inference_mode()
    def __init__(self, model: DualEncoder, batches: Sequence[Batch], loading: Loading) -> None:
        """batches: feature maps [b, channels, rows, columns], and ids [b, n] and lengths [b] of the captions."""
        super().__init__(model, "ridge", loading=loading)
        first = batches[0][0].float()
        self.center, self.scale = first.mean((0, 2, 3)), first.std((0, 2, 3))
        draw = torch.Generator().manual_seed(0)
        self.random = torch.randn(len(self.center), FEATURES, generator=draw) * len(self.center) ** -0.5
        self.bias = torch.randn(FEATURES, generator=draw)
        self.details = {"numbers": f"{self._fit(batches):,}"}

    def _fit(self, batches: Sequence[Batch]) -> int:
        """Fit the map, and return the numbers of a vector."""
        features = torch.cat([self._features(maps) for maps, _, _ in batches]).double()
        counts = torch.stack([self._bags(ids, lengths).sum(0) for _, ids, lengths in batches]).sum(0)
        self.spoken = (counts >= LEAST).nonzero()[:, 0]
        bags = torch.cat([self._bags(ids, lengths)[:, self.spoken] for _, ids, lengths in batches]).double()
        self.share, self.mean = bags.mean(0), features.mean(0)
        self.map = solved(*moments(features - self.mean, (bags - self.share) * self.share**-RARE))
        say(f"ridge regression from {features.shape[1]} features to {len(self.spoken):,} tokens")
        return len(self.spoken)

    def _cells(self, maps: Tensor) -> Tensor:
        """Return the random features [b, cells, FEATURES] of feature maps."""
        cells = (maps.float().flatten(2).transpose(1, 2) - self.center) / self.scale
        return F.relu(cells @ self.random + self.bias)

    def _features(self, maps: Tensor) -> Tensor:
        seen = self._cells(maps)
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
        """Return [b, vocabulary] float32: 1 for each token of a caption."""
        there = torch.arange(ids.shape[1]) < lengths[:, None]
        bags = torch.zeros(len(ids), self.model.config.text.vocab_size)
        return bags.scatter_add_(1, ids.long(), there.float()).clamp_(max=1)


class ProductEncoder(RidgeEncoder):
    def _fit(self, batches: Sequence[Batch]) -> int:
        captions = [words for _, ids, lengths in batches for words in read(ids, lengths)]
        counts = Counter(word for words in captions for word in set(words))
        # A word that half of the captions have ("a", "and") joins what others name.
        self.columns = {
            word: n for n, word in enumerate(w for w, c in counts.items() if LEAST <= c < len(captions) / 2)
        }
        pairs = [self._pairs(words) for words in captions]
        self.before, self.behind = (sorted({pair[side] for found in pairs for pair in found}) for side in (0, 1))
        bags = torch.zeros(len(captions), len(self.columns), dtype=torch.float64)
        for row, words in zip(bags, captions, strict=True):
            row[[self.columns[word] for word in words if word in self.columns]] = 1
        features = torch.cat([self._cells(maps).mean(1) for maps, _, _ in batches]).double()
        self.mean = features.mean(0)
        self.map = solved(*moments(features - self.mean, bags - bags.mean(0)))
        self._fit_cells([maps for maps, _, _ in batches], pairs)
        say(f"ridge regression from {FEATURES} features of a cell to {len(self.columns):,} words")
        return len(self.before) * len(self.behind)

    def _fit_cells(self, maps: Sequence[Tensor], pairs: Sequence[list[tuple[int, int]]]) -> None:
        """Fit the map again to cells: a word belongs to the cells where its pair scores highest."""
        queue, count = iter(pairs), 0
        sums = torch.zeros(FEATURES + 1 + len(self.columns), FEATURES + 1, dtype=torch.float64)
        for some in maps:
            cells = self._cells(some).double()
            scores = self._scores(cells)
            words = torch.zeros_like(scores)
            for score, word in zip(scores, words, strict=True):
                for first, second in next(queue):
                    best = (score[:, first] * score[:, second]).topk(CELLS).indices
                    word[best[:, None], torch.tensor([first, second])] = 1
            rows = F.pad(cells.flatten(0, 1), (0, 1), value=1.0)
            sums += torch.cat([rows, words.flatten(0, 1)], 1).T @ rows
            count += len(rows)
        sums /= count
        self.mean = sums[FEATURES, :FEATURES]
        both = sums[:, :FEATURES] - sums[:, FEATURES:] * self.mean
        self.map = solved(both[:FEATURES], both[FEATURES + 1 :].T)

    def _scores(self, cells: Tensor) -> Tensor:
        return ((cells - self.mean) @ self.map).clamp(min=0)

    def _pairs(self, words: Sequence[str]) -> list[tuple[int, int]]:
        there = [self.columns.get(word) for word in words]
        return [(a, b) for a, b in pairwise(there) if a is not None and b is not None]

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        scores = self._scores(self._cells(self.model.image.stem(pixels)).double())
        product = scores[:, :, self.before].transpose(1, 2) @ scores[:, :, self.behind]
        return F.normalize(product.sqrt().flatten(1)).float()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> tuple[Tensor, None]:
        result = torch.zeros(len(texts), len(self.before), len(self.behind))
        for row, words in zip(result, read(*self._ids(texts)), strict=True):
            for first, second in self._pairs(words):
                if first in self.before and second in self.behind:
                    row[self.before.index(first), self.behind.index(second)] = 1
        return F.normalize(result.flatten(1)), None


def moments(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return features.T @ features / len(features), features.T @ targets / len(features)


def solved(second: Tensor, both: Tensor) -> Tensor:
    """Return the map [features, targets] of ridge regression; second, both: moments of centred float64 rows."""
    second.diagonal().add_(RIDGE * second.diagonal().mean())
    return torch.linalg.solve(second, both)


def read(ids: Tensor, lengths: Tensor) -> list[list[str]]:
    """Return each caption's words."""
    texts = token_texts()
    return ["".join(texts[t] for t in row[:n]).split() for row, n in zip(ids.tolist(), lengths.tolist(), strict=True)]
