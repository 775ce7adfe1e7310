"""Rank the pictures of an index for a text or a picture, less the words to leave out, and mark those that stand out.

An index stores averages of similar patches, which order pictures almost as all patches do: the best are read again, and
ranked by all of their patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from filip.errors import UserError
from filip.eval.encoders import joined, stacked
from filip.eval.scorer import Scorer, Texts
from filip.explore.names import encode_query
from filip.index.store import Index
from filip.sets.pictures import read_image

ENOUGH = 8  # pictures among which some can stand out
RANKED_AGAIN = 150  # pictures of which all patches are compared: with 100, 9.4 of the ten best are the exact ones
# Share of the distance that chance alone reaches; `python -m bench.search_words` measures its losses and refusals.
FOUND = 0.75


@dataclass(frozen=True)
class Ranked:
    """A picture of a ranking.

    score: s^T of the query. stands_out: its distance from the median picture, in standard deviations of the pictures
    below the median, minus the same distance for the words to leave out.
    """

    path: str
    score: float
    stands_out: float


@dataclass
class Ranking:
    """All pictures, best first. bound: a picture that stands out less shows no more of the query than others do.

    tokens: all patches of the best pictures, [n1, d] float32, by path.
    """

    hits: list[Ranked]
    bound: float
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def reason(self) -> str:
        """Return how many of the pictures stand out."""
        count, above = len(self.hits), sum(hit.stands_out >= self.bound for hit in self.hits)
        if count < ENOUGH:
            return f"{count} picture{'s are' if count > 1 else ' is'} too few to say which of them stand out"
        return f"{above:,} of {count:,} pictures stand{'' if above != 1 else 's'} out (by {self.bound:.1f} or more)"


def query_of(scorer: Scorer, text: str, tokens: str = "content") -> Texts:
    """Encode a query: a text, or the picture in the file of that name: its patches then replace words.

    tokens: a text's tokens that count, see :mod:`filip.eval.text_tokens`. Raises NothingKnownError for a text of which
    the model knows no word.
    """
    if not is_picture(text):
        return encode_query(scorer, text, tokens)
    try:
        image = read_image(Path(text))
    except UserError as error:
        raise UserError(f"the picture to look for, {text}: {error}") from error
    features = scorer.encode_images(stacked([scorer.transform(image)])).float().cpu()
    if not scorer.token_wise:
        return Texts(features, None)
    return Texts(features[0], torch.tensor([features.shape[1]]))


def is_picture(text: str) -> bool:
    """Return whether a query is the name of a file instead of a text."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL
        return False


def rank(
    index: Index,
    scorer: Scorer,
    query: Texts,
    without: Sequence[str] = (),
    tokens: str = "content",
    again: int = RANKED_AGAIN,
) -> Ranking:
    """Rank all pictures of an index; ``again``: how many of the best are read again where it holds averages.

    A picture in which a text of ``without`` stands out (is above the typical picture) loses as many deviations.
    """
    queries = [query, *(encode_query(scorer, text, tokens) for text in without)]
    scores = torch.stack([index.scores(scorer, texts) for texts in queries])
    median, deviation = typical(scores)
    paths = index.paths
    best = _distance((scores - median) / deviation).topk(min(again, len(index))).indices.tolist()
    whole = _all_tokens(index, scorer, [paths[place] for place in best])
    reread = [place for place in best if paths[place] in whole]
    if reread and index.about.pool > 1:
        features = torch.stack([whole[paths[place]] for place in reread])
        for row, texts in zip(scores, queries, strict=True):
            row[reread] = scorer.similarity(features, Texts(texts.values.float(), texts.lengths)).t2i[:, 0]
        if len(reread) == len(index):  # averages depend on the CPU's rounding, and of few pictures the deviation does
            median, deviation = typical(scores)
    distances = _distance((scores - median) / deviation).tolist()
    hits = [Ranked(*hit) for hit in zip(paths, scores[0].tolist(), distances, strict=True)]
    first = {paths[place] for place in best}
    hits.sort(key=lambda hit: (hit.path not in first, -hit.stands_out, hit.path))
    return Ranking(hits, bound(len(hits)), whole)


def typical(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median of each row and the deviation of the values below it, both [rows, 1].

    Unlike mean and standard deviation they do not move when a third of the pictures shows the query.
    """
    median = scores.median(1, keepdim=True).values
    below = scores <= median
    squares = ((scores - median).square() * below).sum(1, keepdim=True)
    return median, (squares / below.sum(1, keepdim=True)).sqrt().clamp(min=1e-12)


def _distance(standing: Tensor) -> Tensor:
    return standing[0] - standing[1:].clamp(min=0).sum(0)


def bound(count: int) -> float:
    """Return the distance below which the best of ``count`` pictures is no hit: a share of what chance reaches.

    Chance reaches the number of deviations that on average half a value of ``count`` normal ones exceeds.
    """
    if count < ENOUGH:
        return -math.inf
    return FOUND * math.sqrt(2) * float(torch.special.erfinv(torch.tensor(1 - 1 / count, dtype=torch.float64)))


def _all_tokens(index: Index, scorer: Scorer, paths: Sequence[str]) -> dict[str, Tensor]:
    """Return all tokens of the pictures that still are files, encoded again where the index holds averages."""
    if not index.about.token_wise:
        return {}
    if index.about.pool == 1:
        return {path: index.tokens_of(path) for path in paths}

    def pixels(path: str) -> Tensor | None:
        try:
            return scorer.transform(read_image(Path(index.about.images) / path))
        except UserError:
            return None

    with ThreadPoolExecutor(2) as pool:
        items = [(path, image) for path, image in zip(paths, pool.map(pixels, paths), strict=True) if image is not None]
    if not items:
        return {}
    tokens = [scorer.encode_images(stacked([image for _, image in part])) for part in _batches(items)]
    return dict(zip((path for path, _ in items), joined(tokens).float().cpu(), strict=True))


def _batches(items: list[tuple[str, Tensor]], size: int = 50) -> list[list[tuple[str, Tensor]]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
