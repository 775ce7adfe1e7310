"""Scenes in a webdataset folder as maps of classes: each pixel has the class that its thing's label names.

    layouts:
      scene_maps: {path: demo_scenes_new, split: test}

Classes are the distinct labels of the set's things, in alphabetical order; the background is unlabelled. A sample has
the places of its things as in :mod:`filip.eval.formats.webdataset` (``.things.png`` and ``.json``).
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from filip.common.errors import UserError
from filip.eval.benchmark import BenchmarkCard
from filip.eval.datasets import EvalSet, Sample
from filip.eval.formats.webdataset import WebdatasetFolder


def open_set(card: BenchmarkCard, root: str | Path) -> EvalSet:
    return SceneMaps(WebdatasetFolder(Path(root) / card.path, card.split))


class SceneMaps(EvalSet):
    """A set of scenes with their things. Raises UserError if a sample has no places of its things."""

    def __init__(self, scenes: WebdatasetFolder):
        self.scenes = scenes
        self.labels: list[list[str]] = []
        for number, (key, members) in enumerate(scenes.samples):
            if not {"json", "things.png"} <= set(members):
                raise UserError(f"sample {key} in {scenes.folder} has no .things.png and .json with its things")
            self.labels.append([str(t["label"]) for t in json.loads(scenes.member(number, "json"))["things"]])
        self.classes = sorted({label for labels in self.labels for label in labels})
        self.number = {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        sample = self.scenes[index]
        values = np.asarray(Image.open(io.BytesIO(self.scenes.member(index, "things.png"))).convert("L"))
        # Value 0 is the background, n the n-th thing.
        classes = np.array([-1, *(self.number[label] for label in self.labels[index])])
        return Sample(sample.key, sample.image, segments=classes[values])
