"""Say what a training on your own pictures gained: the first screen of the report of a study by ``filip new``."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from filip.data.cards import load_source
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.eval.own_data import FEW, size_of_set
from filip.report.results import Results
from filip.study import Study

AMONG = (10, 5, 1)  # the best: the first of these by which chance finds at most a quarter
SHOWN = 6  # pictures each of hits and misses
HALVES = (
    "Two models were tested, each on the half that it did not see; the one that you keep was trained on all pictures."
)
PLACES = {10: "among the ten best", 5: "among the five best", 1: "as the first"}


@dataclass(frozen=True)
class OwnPictures:
    """The distinct captions of a study's held-out pictures, and which find a picture of theirs among the best.

    found: by model, "before" the training, "clip" or "filip", [captions] bool. pictures: for each caption its set
    (a filip.eval.datasets.EvalSet) and the first of its pictures in it. chance: captions that chance would find.
    """

    study: Study
    among: int
    captions: list[str]
    pictures: list[tuple[Any, int]]
    found: dict[str, np.ndarray]
    chance: float
    trained: int
    tested: int

    @classmethod
    def of(cls, study: Study, results: Results) -> OwnPictures | None:
        """Return None if the study is not one of ``filip new``, or a model was not evaluated.

        In halves, each caption's picture is sought in its own half, by the other half's model.
        """
        parts = [_Part.of(study, results, *entry) for entry in study.config.get("own_pictures", {}).items()]
        there = [part for part in parts if part]
        if not there or len(there) < len(parts):
            return None
        total = sum(len(part.captions) for part in there)
        for among in AMONG:
            if (chance := sum(part.chance(among) for part in there)) <= total / 4:
                break
        models = set[str].intersection(*(set(part.outcomes) for part in there))
        return cls(
            study,
            among,
            [caption for part in there for caption in part.captions],
            [(part.data, place) for part in there for place in part.pictures],
            {model: np.concatenate([part.found(model, among) for part in there]) for model in models},
            chance,
            (results.training("filip") or {}).get("pairs", 0),
            sum(part.tested for part in there),
        )

    def sentences(self) -> list[str]:
        """Return what was gained, whether chance explains it, and what a set of this size can show."""
        after, total = self.found["filip"], len(self.captions)
        start = self.found.get("before", self.found.get("clip"))
        other = "the model before" if "before" in self.found else "CLIP"
        said = f"After training, {after.sum()} of {total} held-out captions find their picture {PLACES[self.among]}"
        said += f"; {other}, {start.sum()}" if start is not None else ""
        sentences = [f"{said}; by chance, {self.chance:.0f}."]
        if start is not None:
            from scipy.stats import binomtest  # slow to import

            gained, lost = int((after & ~start).sum()), int((start & ~after).sum())
            explained = not gained + lost or binomtest(gained, gained + lost).pvalue >= 0.05
            verdict = "which chance explains" if explained else "which chance hardly explains"
            changed = f"FILIP alone finds {gained} of them, and {other} alone {lost}, a difference {verdict}."
            sentences.append(changed if gained + lost else "Both models find the same captions.")
        if len(self.study.config["own_pictures"]) > 1:
            sentences.append(HALVES)
        return [*sentences, f"{size_of_set(self.trained, self.tested)}."]

    def next_commands(self) -> list[tuple[str, str]]:
        """Return three commands for this study's pictures and model, each with what it is for."""
        name = self.study.name
        card = load_source(name)
        folder = shlex.quote(str(card.image_root or card.images or "PICTURES"))
        model = f"results/{name}/models/filip.safetensors"
        caption = shlex.quote(self.captions[int(np.argmax(self.found["filip"]))])
        more = (
            ("start from a large CLIP", f"filip new {name}_2 {folder} start=open_clip:ViT-B-32:laion2b_s34b_b79k")
            if self.trained < FEW
            else ("train five times, for intervals", f"make run STUDY={name} SEEDS=5")
        )
        before = [str(peer["model"]) for peer in self.study.peers.values()]
        page = f"models=[{','.join([*before, model])}] images={folder} out={name}.html"
        return [
            ("search your pictures", f"filip search {folder} {caption} model={model}"),
            ("see which word looks where, before and after", f"filip explore export {page}"),
            more,
        ]

    def shown(self) -> list[dict[str, Any]]:
        """Return six hits and six misses with their pictures; first those that were missed before the training."""
        after = self.found["filip"]
        before = self.found.get("before", np.zeros_like(after))
        new = sorted(np.flatnonzero(after), key=lambda caption: before[caption])
        groups = {"Found": new, "Missed": list(np.flatnonzero(~after))}
        return [
            {
                "title": f"{title}, {len(places)} of {len(after)}",
                "pictures": [
                    {"caption": self.captions[place], "image": data[picture].image}
                    for place in places[:SHOWN]
                    for data, picture in [self.pictures[place]]
                ],
            }
            for title, places in groups.items()
        ]


@dataclass(frozen=True)
class _Part:
    """The captions of one benchmark of held-out pictures, and the outcomes of the models on it."""

    data: Any
    captions: list[str]
    pictures: list[int]
    group: np.ndarray  # of each query: its place among the captions
    tested: int
    outcomes: dict[str, Any]

    @classmethod
    def of(cls, study: Study, results: Results, card: str, run: str) -> _Part | None:
        """Return None if the run was not evaluated on the card."""
        outcomes = {
            {run: "filip"}.get(model, model): record[f"{card}.t2i"]
            for model in (*study.peers, *({"clip"} & {*study.runs}), run)
            if (record := results.outcomes(model, "retrieval")) and f"{card}.t2i" in record
        }
        if "filip" not in outcomes:
            return None
        data: Any = open_set(load_card(card), study.config["eval"]["root"])
        places = {data.name_of(place): place for place in range(len(data))}
        queries, owners, used = outcomes["filip"].cluster, [], Counter[str]()
        texts = []
        for image in queries.tolist():  # the captions of an image follow each other
            texts.append(data.images.items[places[image]].captions[used[image]])
            owners.append(places[image])
            used[image] += 1
        captions, first, group = np.unique(texts, return_index=True, return_inverse=True)
        return cls(data, captions.tolist(), [owners[place] for place in first], group, len(used), outcomes)

    def chance(self, among: int) -> float:
        """Return how many captions would find their picture among ``among`` pictures drawn at random."""
        missed = 0.0
        for count in np.bincount(self.group):  # of the pictures of a caption
            drawn = range(min(among, self.tested))
            missed += float(np.prod([max(0, 1 - count / (self.tested - n)) for n in drawn]))
        return len(self.captions) - missed

    def found(self, model: str, among: int) -> np.ndarray:
        hits = np.zeros(len(self.captions))
        np.maximum.at(hits, self.group, self.outcomes[model].values[f"r{among}"])
        return hits >= 0.5
