"""Measure recall by the number of things in a scene and by bytes an image: the figure of docs/token_wise.md.

    python -m bench.studies.dose      # after `make demo SEEDS=5`; five CPU minutes, and one for each model of queries

The demo's models, and models of a few learned queries that are trained here as those are, on scenes that are composed
here, DOSES things each, by the training's artists and without held-out pairs, so that only the number of things differs
from the training list. FILIP's bytes are bought by averaging neighbouring patches of an image; it was not trained so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.demo_training import DemoTraining, run
from bench.readme import put_on_page
from bench.speedrun import recall
from bench.studies.onset_page import SMOOTH, with_interval
from filip import tokenizer
from filip.command import option, run_command
from filip.data.preprocessing import eval_transform
from filip.files import replacing
from filip.interaction import pooled_similarity, score
from filip.models import DualEncoder, TextFeatures, load_model
from filip.progress import say
from filip.report.plots import INK, KEPT, MUTED, grid
from filip_demo.artists import ARTISTS
from filip_demo.catalogue import Catalogue
from filip_demo.corpus import train_and_test
from filip_demo.packages import fetch_packages
from filip_demo.scenes import Scene, Sprites, compose, in_scenes, load_sprites, pair_share, training_concepts

PAGE, FIGURE = Path("docs/token_wise.md"), Path("docs/images/dose.svg")
MARKS = ("<!-- dose:begin -->", "<!-- dose:end -->")
SEED = 77  # no set of the demo has it
DOSES = range(1, 9)
TRAINED = 4  # things in a training scene, at most
SIDES = (6, 3, 2, 1)  # sides of the grid of patches that an image keeps
RUNS = {"CLIP": "clip", "FILIP": "filip", "FILIP, smooth": "smooth"}
QUERIES = "learned queries"
# Of learned queries: the best of bench/studies/variants.py. One query is the demo's CLIP.
RATES = {4: "8e-3", 16: "8e-3"}
COLOURS = {"CLIP": MUTED, "FILIP": INK, "FILIP, smooth": SMOOTH, QUERIES: KEPT}


@dataclass
class Dose:
    """Options: where the models are, and how many scenes to make."""

    results: str = option("results/demo", "results of the demo")
    cache: str = option(".cache/demo", "folder of the npm packages")
    scenes: int = option(500, "scenes of each number of things")
    models: str = option(
        "results/dose", "models of learned queries; what it lacks is trained. Delete it when the corpus changes"
    )
    seeds: list[int] = option([0, 1, 2, 3, 4], "seeds of the models of learned queries")


@dataclass
class Doses:
    """Scenes of one number of things."""

    maps: Tensor  # [scenes, channels, rows, columns]: the stem's, which all models share
    captions: list[str]


Found = dict[str, list[dict[tuple[int, int], float]]]  # model, seed, (things, vectors an image): R@1


def main(study: Dose) -> None:
    """Train what is missing; write the page's table and the figure."""
    torch.set_num_threads(1)
    queries = [[trained(study, count, seed) for count in RATES] for seed in study.seeds]
    models = {name: list(seeds_of(Path(study.results) / "models", run)) for name, run in RUNS.items()}
    doses = {count: encoded(scenes, models["CLIP"][0]) for count, scenes in composed(study)}
    found = {name: [scored(model, doses) for model in own] for name, own in models.items()}
    found[QUERIES] = [
        {key: recall for file in own for key, recall in scored(load_model(str(file)).eval(), doses).items()}
        for own in queries
    ]
    block = table(found, study.scenes, {count: truncated(dose, models["CLIP"][0]) for count, dose in doses.items()})
    put_on_page(PAGE, block, MARKS)
    draw(found)


def trained(study: Dose, count: int, seed: int) -> Path:
    """Return the file of a model of ``count`` learned queries a side; train it as the demo's if it does not exist."""
    file = Path(study.models) / f"queries-{count}-{seed}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        place = DemoTraining(experiment="demo_small", steps=300, warmup_steps=100)
        overrides = ["model.pooling=queries", f"model.pool_queries={count}", f"optimizer.base_lr={RATES[count]}"]
        outcome = run(place, [*overrides, f"seed={seed}"], save=file)
        say(f"{count} queries, seed {seed}: {outcome.recall} after {outcome.seconds:.0f} CPU seconds")
    return file


def seeds_of(folder: Path, run: str) -> Iterator[DualEncoder]:
    """Yield the models of a run's seeds."""
    for file in models_of(folder, run):
        yield load_model(str(file)).eval()


def models_of(folder: Path, run: str) -> list[Path]:
    """Return the files of a run's seeds: RUN.safetensors, RUN_s1.safetensors, …"""
    return sorted([folder / f"{run}.safetensors", *folder.glob(f"{run}_s[0-9].safetensors")])


def composed(study: Dose) -> Iterator[tuple[int, Iterator[Scene]]]:
    """Yield scenes of 1, 2, … things, no two of the same things."""
    sprites = training_sprites(study.results, study.cache)
    for count in DOSES:
        yield count, _scenes(sprites, count, study.scenes)


def training_sprites(results: str, cache: str) -> Sprites:
    """Return the drawings that the demo's training scenes show."""
    catalogue = Catalogue(fetch_packages(cache))
    training, _ = train_and_test(catalogue, {artist.key: catalogue.drawings(artist) for artist in ARTISTS})
    return load_sprites([d for d in training if in_scenes(d.emoji)], Path(results) / "corpus" / "sprites")


def _scenes(sprites: Sprites, count: int, scenes: int) -> Iterator[Scene]:
    draw, concepts = random.Random(f"dose {count}"), sorted(sprites)
    taken: set[frozenset[str]] = set()
    while len(taken) < scenes:
        chosen = training_concepts(draw, concepts, count, pair_share(len(concepts)))
        if len(chosen) == count and frozenset(chosen) not in taken:
            taken.add(frozenset(chosen))
            yield compose(sprites, chosen, SEED + count, len(taken))


def encoded(scenes: Iterator[Scene], model: DualEncoder) -> Doses:
    """Return the stem's maps of the scenes, and their captions."""
    assert model.image.stem is not None
    stem, transform = model.image.stem.folded(), eval_transform(model.image_size)
    maps, captions = [], []
    with torch.no_grad():
        for scene in scenes:
            maps.append(stem(transform(scene.image)[None]))
            captions.append(scene.caption)
    return Doses(torch.cat(maps), captions)


@torch.no_grad()
def scored(model: DualEncoder, doses: dict[int, Doses]) -> dict[tuple[int, int], float]:
    """Return R@1 in percent, the mean of both directions, by number of things and vectors that an image keeps."""
    found = {}
    for count, dose in doses.items():
        texts = model.encode_text(*tokenizer.tokenize(dose.captions, model.config.text.context_length))
        images = torch.cat([model.encode_image(part) for part in dose.maps.split(100)])
        if not isinstance(texts, TextFeatures):
            found[count, 1] = fmean(recall(pooled_similarity(images, texts)).values())
        elif images.shape[1] in RATES:
            found[count, images.shape[1]] = fmean(recall(score(images, *texts)).values())
        else:
            for side in SIDES:
                found[count, side**2] = fmean(recall(score(averaged(images, side), *texts)).values())
    return found


def averaged(images: Tensor, side: int) -> Tensor:
    """Return unit patches [b, side * side, d]: means over squares of the patches [b, SIDES[0] ** 2, d]."""
    b, _, d = images.shape
    rows = images.transpose(1, 2).reshape(b, d, SIDES[0], SIDES[0])
    return F.normalize(F.adaptive_avg_pool2d(rows, side).flatten(2).transpose(1, 2), dim=-1)


def table(found: Found, scenes: int, cut: dict[int, float]) -> str:
    """Return the Markdown table: a row for each model and number of vectors, means and intervals over the seeds."""
    lines = [
        f"| R@1 of {scenes:,} | vectors, bytes an image | {' | '.join(map(str, DOSES))} |",
        f"| --- | ---: {'| ---: ' * len(DOSES)}|",
        f"| *chance* | | {' | '.join(f'*{100 / scenes:.1f}*' for _ in DOSES)} |",
    ]
    for name, seeds in found.items():
        for vectors in dict.fromkeys(vectors for _, vectors in seeds[0]):
            cells = [with_interval(seed[count, vectors] for seed in seeds) for count in DOSES]
            lines.append(f"| {name} | {vectors}, {bytes_of(vectors):,} | {' | '.join(cells)} |")
    lines.append(f"| captions cut, % | | {' | '.join(f'{cut[count]:.0f}' for count in DOSES)} |")
    return "\n".join(lines)


def bytes_of(vectors: int) -> int:
    """Return what so many vectors of 128 numbers take in float16."""
    return vectors * 128 * 2


def truncated(dose: Doses, model: DualEncoder) -> float:
    """Return the share of captions, in percent, that are longer than the model's context."""
    _, lengths = tokenizer.tokenize(dose.captions, 77)
    return 100 * float((lengths > model.config.text.context_length).float().mean())


def draw(found: Found) -> None:
    """Draw R@1 against the number of things, and against bytes an image at three things; each seed is a line."""
    figure, (left, right) = grid(1, 2, 10, 4)
    for name, seeds in found.items():
        for number, seed in enumerate(seeds):
            kept = sorted({vectors for _, vectors in seed})
            style: dict[str, Any] = {"color": COLOURS[name], "marker": "o", "ms": 3, "lw": 1.2}
            label = "" if number else f"{name}, {kept[-1]} of them" if name == QUERIES else name
            left.plot(DOSES, [seed[count, kept[-1]] for count in DOSES], label=label, **style)
            right.plot([bytes_of(n) for n in kept], [seed[3, n] for n in kept], **style)
    left.axvline(TRAINED + 0.5, color=MUTED, lw=0.6, ls=":")
    left.annotate("no training scene has more", (TRAINED + 0.6, 2), color=MUTED, fontsize=8)
    left.set(xlabel="things in the scene", ylim=(0, None))
    right.set(xlabel="bytes an image in float16, scenes of three things", xscale="log", ylim=(0, None))
    left.set_title("R@1 in %, mean of both directions")
    left.legend()
    for axis in (left, right):
        axis.grid(axis="y")
    with replacing(FIGURE) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    run_command(main, Dose)
