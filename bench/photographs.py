"""Trained on drawings, tested on photographs: collages of one to four cut-out photographs with names.

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default_*.deb stamps      # GPL-2, 80 MB
    python -m bench.photographs stamps=stamps       # after `make demo SEEDS=3`; ten minutes of a core

The photographs are stamps of Tux Paint: of animals, food, plants, vehicles and things of the house, each with a name
("An elephant."). No model was trained on one and no setting was chosen with one. A collage is composed as the demo
composes its scenes, its caption lists the names. Prints R@1 by the number of things, and draws it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy import stats

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import replacing
from filip.common.progress import say
from filip.eval.scorer import Scorer, load_scorer, ranking
from filip.report.plots import grid
from filip.report.style import Look, looks
from filip.study import load_study
from filip_demo.catalogue import Emoji
from filip_demo.scene_captions import fill
from filip_demo.scene_sets import LIST
from filip_demo.scenes import Scene, Sprite, compose

FOLDERS = ("animals", "clothes", "food", "hobbies", "household", "medical", "plants", "sports", "vehicles")
NO_PHOTOGRAPHS = re.compile("cartoon|drawing|dinosaur|sketch|clipart|armor")
NAME = re.compile(r"An? ([a-z][a-z -]{2,24})\.")
NUMBERS = (1, 2, 3, 4)
LEAST_SIDE = 48  # pixels of a cut-out


@dataclass
class Photographs:
    stamps: str = option(MISSING, "folder into which the package was unpacked")
    results: str = option("results/demo", "results of the demo, with its models")
    runs: list[str] = option(["clip", "filip", "smooth"], "models, each with all its seeds")
    control: str = option("ridge:results/demo/data/demo", "a model of one vector a side, fitted in closed form")
    collages: int = option(500, "collages of each number of things", at_least=2)
    picture: str = option("docs/images/photographs.svg", "where the figure goes")


def main(config: Photographs) -> None:
    """Print R@1 of each model by the number of things, and draw it."""
    cut_outs = read_cut_outs(Path(config.stamps))
    study = load_study(None, config.results)
    sets = {number: [collage(cut_outs, number, index) for index in range(config.collages)] for number in NUMBERS}
    say(f"{len(cut_outs)} cut-outs with names, {config.collages} collages of each number of things")
    models = {
        study.label(run): [f"{config.results}/models/{seed}.safetensors" for seed in study.replicas(run)]
        for run in config.runs
    }
    models["ridge to words"] = [config.control]
    found: dict[str, list[list[float]]] = {}
    for label, files in models.items():
        scorers = map(load_scorer, files)
        found[label] = [[recall(scorer, sets[number]) for number in NUMBERS] for scorer in scorers]
    print(f"| R@1, chance {100 / config.collages} | {' | '.join(f'{n} things' for n in NUMBERS)} |")
    print(f"|---|{'--:|' * len(NUMBERS)}")
    for label, seeds in found.items():
        print(f"| {label} | {' | '.join(map(interval, zip(*seeds, strict=True)))} |")
    shown = {study.label(run): look for run, look in looks(study).items()}
    with replacing(config.picture) as part:
        draw(found, shown).savefig(part, format="svg")


def read_cut_outs(folder: Path) -> dict[str, list[Sprite]]:
    """Return the photographs by name; of several with a name the first."""
    found: dict[str, list[Sprite]] = {}
    for text in sorted(path for name in FOLDERS for path in folder.rglob(f"stamps/{name}/**/*.txt")):
        named = NAME.fullmatch(text.read_text("utf-8").splitlines()[0].strip())
        picture = text.with_suffix(".png")
        if named is None or named[1] in found or NO_PHOTOGRAPHS.search(str(picture)) or not picture.is_file():
            continue
        image = Image.open(picture).convert("RGBA")
        if (box := image.getchannel("A").getbbox()) is None or min(image.crop(box).size) < LEAST_SIDE:
            continue
        cut_out = image.crop(box)
        if np.asarray(cut_out.getchannel("A")).min() < 255:  # else a photograph with its background
            found[named[1]] = [Sprite("tuxpaint", Emoji(named[1], named[1], named[1], (), "", ""), cut_out)]
    if len(found) < 2 * max(NUMBERS):
        raise UserError(
            f"stamps={folder}: {len(found)} cut-out photographs with names there; unpack the package into it"
        )
    return found


def collage(cut_outs: dict[str, list[Sprite]], number: int, index: int) -> tuple[Image.Image, str]:
    """Return collage number ``index`` of so many things, and its caption."""
    names = random.Random(f"photographs {number} {index}").sample(sorted(cut_outs), number)
    scene: Scene = compose(cut_outs, names, number, index)
    return scene.image, fill(LIST, names)


@torch.inference_mode()
def recall(scorer: Scorer, pairs: list[tuple[Image.Image, str]]) -> float:
    """Return the mean of R@1 in both directions, in percent; a caption that occurs twice counts for both pictures."""
    pixels = torch.stack([scorer.transform(image) for image, _ in pairs])
    images = torch.cat([scorer.encode_images(batch) for batch in pixels.split(64)]).float()
    similarity = scorer.similarity(images, scorer.encode_texts([text for _, text in pairs]))
    texts = [text for _, text in pairs]

    def share(best: torch.Tensor) -> float:
        return fmean(texts[one] == texts[number] for number, one in enumerate(best.tolist()))

    i2t, t2i = ranking(similarity, "image").argmax(1), ranking(similarity, "text").argmax(0)
    return 50 * (share(i2t) + share(t2i))


def interval(values: tuple[float, ...]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    reach = stats.t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{fmean(values):.1f} ±{reach:.1f}"


def draw(found: dict[str, list[list[float]]], shown: dict[str, Look]) -> Figure:
    """Draw R@1 over the number of things, the mean of the trainings over each of them."""
    figure, (axis,) = grid(1, 1, 5, 3.2)
    for label, seeds in found.items():
        look = shown.get(label, Look())
        for values in seeds:
            axis.plot(NUMBERS, values, color=look.colour, alpha=0.28, linewidth=1)
        mean = [fmean(values) for values in zip(*seeds, strict=True)]
        axis.plot(NUMBERS, mean, color=look.colour, linewidth=1.8, label=label)
    axis.set_xticks(NUMBERS)
    axis.set_xlabel("cut-out photographs in a collage")
    axis.set_ylabel("R@1, %")
    axis.set_ylim(0)
    axis.legend()
    return figure


if __name__ == "__main__":
    run_command(main, Photographs)
