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
from filip.report.results import Results
from filip.sets.size import FEW, size_of_set
from filip.study import Study

AMONG = (10, 5, 1)  # the best: the first of these by which chance finds at most a quarter
SHOWN = 6  # pictures each of hits and misses
PLACES = {10: "among the ten best", 5: "among the five best", 1: "as the first"}


@dataclass(frozen=True)
class OwnPictures:
    """The distinct captions of a study's held-out pictures, and which find a picture of theirs among the best.

    found: by model, "before" the training or a run's name, [captions] bool. pictures: for each caption the first of
    its pictures in the set. chance: captions that chance would find.
    """

    study: Study
    among: int
    captions: list[str]
    pictures: list[int]
    data: Any  # the held-out pictures, a filip.eval.datasets.EvalSet
    found: dict[str, np.ndarray]
    chance: float
    trained: int
    tested: int

    @classmethod
    def of(cls, study: Study, results: Results) -> OwnPictures | None:
        """Return None if the study is not one of ``filip new``, or its model was not evaluated."""
        name = str(study.config.get("own_pictures"))
        outcomes = {
            model: record[f"{name}.t2i"]
            for model in (*study.peers, *study.runs)
            if (record := results.outcomes(model, "retrieval")) and f"{name}.t2i" in record
        }
        if "filip" not in outcomes:
            return None
        data: Any = open_set(load_card(name), study.config["eval"]["root"])
        places = {data.name_of(place): place for place in range(len(data))}
        queries, owners, used = outcomes["filip"].cluster, [], Counter[str]()
        texts = []
        for image in queries.tolist():  # the captions of an image follow each other
            texts.append(data.images.items[places[image]].captions[used[image]])
            owners.append(places[image])
            used[image] += 1
        captions, first, group = np.unique(texts, return_index=True, return_inverse=True)
        counts, tested = np.bincount(group), len(used)
        for among in AMONG:
            # the best, drawn without replacement, show none of the `count` pictures of a caption
            missed = [
                np.prod([max(0, 1 - count / (tested - n)) for n in range(min(among, tested))]) for count in counts
            ]
            chance = len(captions) - float(sum(missed))
            if chance <= len(captions) / 4:
                break
        found = {}
        for model, outcome in outcomes.items():
            hits = np.zeros(len(captions))
            np.maximum.at(hits, group, outcome.values[f"r{among}"])
            found[model] = hits >= 0.5
        trained = (results.training("filip") or {}).get("pairs", 0)
        pictures = [owners[place] for place in first]
        return cls(study, among, captions.tolist(), pictures, data, found, chance, trained, tested)

    def sentences(self) -> list[str]:
        """Return what was gained, whether chance explains it, and what a set of this size can show."""
        after, total = self.found["filip"], len(self.captions)
        start = self.found.get("before", self.found.get("clip"))
        other = "before" if "before" in self.found else "CLIP, trained alike"
        said = f"After training, {after.sum()} of {total} held-out captions find their picture {PLACES[self.among]}"
        said += f"; {other}, {start.sum()}" if start is not None else ""
        sentences = [f"{said}; by chance {self.chance:.0f} would."]
        if start is not None:
            from scipy.stats import binomtest  # slow to import

            gained, lost = int((after & ~start).sum()), int((start & ~after).sum())
            explained = not gained + lost or binomtest(gained, gained + lost).pvalue >= 0.05
            verdict = "which chance explains" if explained else "which chance hardly explains"
            changed = f"{gained} captions are found that were not, and {lost} are lost: a change {verdict}."
            sentences.append(changed if gained + lost else "The training changed nothing that these captions show.")
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
                    {"caption": self.captions[place], "image": self.data[self.pictures[place]].image}
                    for place in places[:SHOWN]
                ],
            }
            for title, places in groups.items()
        ]
