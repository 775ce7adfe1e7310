"""Measure which tokens of a text should count in a search: the figures of docs/search.md.

    python -m bench.search_words                       # after `make demo`; the choice, on scenes that no table shows
    python -m bench.search_words card=demo_scenes_new  # what the page quotes

For each thing of the scenes "a THING", and each scene's caption: how often a scene with the thing, or the caption's own
scene, comes first. With all patches in float32, and as an index stores them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from filip.command import option, run_command
from filip.eval.cards import load_card
from filip.eval.formats import open_set
from filip.eval.scorer import Scorer, load_scorer
from filip.eval.text_tokens import CHOICES
from filip.index.store import pooled, restored, rounded
from filip.search.ranking import bound, typical


@dataclass
class SearchWords:
    model: str = option("emoji", "a token-wise model of ours")
    root: str = option("results/demo/corpus/eval", "folder of the test sets")
    card: str = option("demo_scenes_search", "retrieval card whose scenes have things")


def main(study: SearchWords) -> None:
    """Print a row for each choice of tokens."""
    scorer = load_scorer(study.model, device="cpu")
    data = open_set(load_card(study.card), study.root)
    samples = [data[n] for n in range(len(data))]
    pixels = (
        torch.stack([scorer.transform(sample.image) for sample in samples[start : start + 64]])
        for start in range(0, len(samples), 64)
    )
    images = torch.cat([scorer.encode_images(batch) for batch in pixels]).float()
    stored = restored(rounded(pooled(images, images.shape[1] // 4), "int8"))
    shown = [{thing.label for thing in sample.things} for sample in samples]
    things = sorted(set().union(*shown))
    relevant = torch.tensor([[thing in labels for labels in shown] for thing in things])
    words = [f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}" for thing in things]
    captions = [sample.captions[0] for sample in samples]
    print(f"{len(things)} things, {len(captions):,} captions of {study.card}, {study.model}\n")
    print("| tokens that count | a THING | caption | a THING, as stored | caption, as stored |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for choice in CHOICES:
        cells = [
            f"{100 * float(right.gather(1, first(scorer, tokens, texts, choice)[:, None]).float().mean()):.1f}"
            for tokens in (images, stored)
            for texts, right in ((words, relevant), (captions, torch.eye(len(captions), dtype=torch.bool)))
        ]
        print(f"| {choice} | {' | '.join(cells)} |", flush=True)
    print("\n| pictures | lost of the things shown | refused of the others |\n| ---: | ---: | ---: |")
    scores = scorer.similarity(images, scorer.with_tokens(words, scorer.encode_texts(words), "content")).t2i.T
    for count in (12, 50, 150, 500):
        lost, refused = refusals(scores, relevant, count)
        print(f"| {count} | {100 * lost:.1f} | {100 * refused:.1f} |")


def refusals(scores: Tensor, wanted: Tensor, count: int, draws: int = 20) -> tuple[float, float]:
    """Return the shares of "nothing found" among things that one of ``count`` random pictures shows, and the others.

    scores, wanted: [things, pictures].
    """
    answers: dict[bool, list[Tensor]] = {True: [], False: []}
    for draw in range(draws):
        some = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(draw))[:count]
        median, deviation = typical(scores[:, some])
        nothing = ((scores[:, some] - median) / deviation).amax(1) < bound(count)
        shown = wanted[:, some].any(1)
        for there in answers:
            answers[there].append(nothing[shown == there].float())
    return float(torch.cat(answers[True]).mean()), float(torch.cat(answers[False]).mean())


def first(scorer: Scorer, images: Tensor, texts: list[str], choice: str) -> Tensor:
    """Return the position of each text's first image."""
    encoded = scorer.with_tokens(texts, scorer.encode_texts(texts), choice)
    return scorer.similarity(images, encoded).t2i.argmax(0)


if __name__ == "__main__":
    run_command(main, SearchWords)
