"""Measure which similarity ranks the texts of a picture best: the table of docs/evaluation.md.

    python -m bench.rank_texts            # after `make demo`; two minutes of one core

For texts that name one thing, two, or all of a scene: how often two pictures both get their own text, and R@1 over all
texts of a set, by s^I, by s^T and by their mean.
"""

import random
from dataclasses import dataclass

import torch

from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.datasets import Sample
from filip.eval.formats import open_set
from filip.eval.scorer import load_scorer, ranking

PAIRS = 20_000


@dataclass
class RankTexts:
    model: str = option("emoji", "a token-wise model")
    root: str = option("results/demo/corpus/eval", "folder of the test sets")
    cards: list[str] = option(
        ["demo_scenes_new", "demo_scenes_artist", "demo_scenes_concepts"], "retrieval cards whose scenes have things"
    )
    count: int = option(600, "scenes of each", at_least=2)


def main(study: RankTexts) -> None:
    """Print a row for each set and kind of text."""
    scorer = load_scorer(study.model, device="cpu")
    print("| texts | s^I | s^T | their mean |\n|---|--:|--:|--:|")
    for card in study.cards:
        data = open_set(load_card(card), study.root)
        samples = [data[number] for number in range(min(len(data), study.count))]
        pixels = torch.stack([scorer.transform(sample.image) for sample in samples])
        images = torch.cat([scorer.encode_images(batch) for batch in pixels.split(64)]).float()
        for kind, names in (("one name", 1), ("two names", 2), ("whole captions", 0)):
            choice = random.Random(0)
            texts = [text_of(sample, names, choice) for sample in samples]
            similarity = scorer.similarity(images, scorer.encode_texts(texts))
            cells = [shares(ranking(similarity, by), samples) for by in ("image", "text", "mean")]
            print(
                f"| {card}, {kind} | {' | '.join(f'{both:.1f} [{first:.1f}]' for both, first in cells)} |", flush=True
            )


def text_of(sample: Sample, names: int, choice: random.Random) -> str:
    """Return a text with so many names of a scene's things; 0: its caption."""
    labels = [thing.label for thing in sample.things]
    if not names or len(labels) < names:
        return sample.captions[0]
    chosen = choice.sample(labels, names)
    return " and ".join(f"{'an' if label[0] in 'aeiou' else 'a'} {label}" for label in chosen)


def shares(scores: torch.Tensor, samples: list[Sample]) -> tuple[float, float]:
    """Return how often both pictures of a pair get their own text, and R@1, in percent. scores: [n, n]."""
    labels, choice = [{thing.label for thing in sample.things} for sample in samples], random.Random(1)
    both = pairs = 0
    for _ in range(PAIRS):
        a, b = choice.sample(range(len(samples)), 2)
        if not labels[a] & labels[b]:
            pairs += 1
            both += int(scores[a, a] > scores[a, b] and scores[b, b] > scores[b, a])
    first = (scores.argmax(1) == torch.arange(len(samples))).float().mean()
    return 100 * both / pairs, 100 * float(first)


if __name__ == "__main__":
    run_command(main, RankTexts)
