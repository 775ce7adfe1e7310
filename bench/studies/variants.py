"""Compare pooled models and learned queries with FILIP at equal steps: a table of docs/token_wise.md.

    python -m bench.studies.variants                # what is missing: a training a row, rate and seed
    python -m bench.studies.variants steps=1000 only='["CLIP, mean"]'     # a longer training, at the rate of STEPS
    python -m bench.studies.variants page=true      # write the tables from what is there

Every training is that of the speedrun (bench/speedrun.py) with another way to compare. Rates are chosen on the seeds
and scenes of the search of bench/studies/onset.py, and its trainings of both maxima stand in the same table.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.readme import put_on_page
from bench.speedrun import Place, configure, evaluate, prepare, training
from bench.studies import onset, onset_page
from bench.studies.onset_page import SEARCH, Curves, mean_recall, with_interval
from filip.command import option, run_command
from filip.files import write_json
from filip.progress import say
from filip.train.provenance import commit
from workflow.estimate import cpu_name

DATA = Path("records/variants")
MARKS = ("<!-- variants:begin -->", "<!-- variants:end -->")
STEPS, RATES, SEEDS = 400, ("2e-3", "4e-3", "8e-3", "1.6e-2"), (0, 1, 2, 3, 4)
CLIP, QUERIES = (["model.interaction=pooled", "token_maximum=hard"], ["model.pooling=queries", "token_maximum=hard"])
CLIP_MEAN = "CLIP, mean"  # the row that the others are compared with
SMOOTH = ["token_maximum=smooth", "token_temperature=0.05"]
ROWS: dict[str, tuple[int, list[str]]] = {  # vectors an image, and settings
    CLIP_MEAN: (1, [*CLIP, "model.pooling=mean"]),
    "CLIP, attention (one query)": (1, [*CLIP, "model.pooling=attention"]),
    "4 queries": (4, [*QUERIES, "model.pool_queries=4"]),
    "4 queries, smooth": (4, ["model.pooling=queries", "model.pool_queries=4", *SMOOTH]),
    "16 queries": (16, [*QUERIES, "model.pool_queries=16"]),
    "16 queries, smooth": (16, ["model.pooling=queries", "model.pool_queries=16", *SMOOTH]),
}
OF_ONSET = {"hard": "FILIP", "smooth 0.05": "FILIP, smooth"}  # the rows with nine patches


@dataclass
class Pooled(Place):
    """The trainings to add."""

    only: list[str] = option([], f"rows, of {'; '.join(ROWS)}; empty = all")
    steps: int = option(STEPS, "steps of the trainings that are reported", at_least=STEPS)
    page: bool = option(False, "write the tables, and train nothing")


def main(study: Pooled) -> None:
    """Train what is missing: first every rate on the seeds of the search, then the best one on the others."""
    if study.page:
        write_page()
        return
    for row in study.only or ROWS:
        for seed in SEARCH:
            for rate in RATES:
                keep(study, DATA, row, ROWS[row][1], rate, seed)
    for seed in SEEDS:
        for row in study.only or ROWS:
            keep(study, DATA, row, ROWS[row][1], best_rate(DATA, row, RATES), seed, study.steps)


def keep(place: Place, folder: Path, row: str, settings: list[str], rate: str, seed: int, steps: int = STEPS) -> None:
    """Train once and keep what was found in ``folder``, unless it has that training."""
    file = folder / f"{row.replace(',', '').replace(':', '').replace(' ', '-')}-{rate}-{seed}-{steps}.json"
    if file.exists():
        return
    place = replace(place, card=onset.SEARCH_CARD if seed in SEARCH else onset.CARD)
    settings = [*settings, f"optimizer.base_lr={rate}", f"max_steps={steps}", f"seed={seed}"]
    config = configure(place, "demo_speedrun", settings)
    corpus = prepare(config, place)
    state = deque(training(config, corpus), maxlen=1).pop()
    point = {"step": steps, "seconds": round(state.seconds, 1), "hard": evaluate(state.model, corpus)}
    say(f"{row}, {rate}, seed {seed}: {json.dumps(point)}")
    write_record(file, row, rate, seed, place.card, point)


def write_record(file: Path, row: str, rate: str, seed: int, card: str, point: dict[str, Any]) -> None:
    """Write what one training found, and where: the form that onset_page.read takes."""
    where = {"card": card, "steps": point["step"], "commit": commit(), "cpu": cpu_name()}
    write_json(file, {"row": row, "rate": rate, "seed": seed, **where, "points": [point]})


def best_rate(folder: Path, row: str, rates: Sequence[str]) -> str:
    """Return the rate that finds most on the seeds of the search."""
    return max(rates, key=lambda rate: sum(mean_recall(one["points"][-1]) for one in searched(folder, row, rate)))


def searched(folder: Path, row: str, rate: str) -> Iterator[dict[str, Any]]:
    for one in map(json.loads, (file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.json")))):
        if (one["row"], one["rate"]) == (row, rate) and one["seed"] in SEARCH:
            yield one


def write_page() -> None:
    """Write a table for each length of CLIP's trainings between the marks of the page."""
    own, of_onset = onset_page.read(DATA), onset_page.read(onset.DATA)
    tables = []
    for steps in sorted({one.steps for one in own if one.row == CLIP_MEAN}):
        rows = {one.row: one for one in own if one.steps == steps}
        filip = {OF_ONSET[one.row]: one for one in of_onset if one.row in OF_ONSET and one.steps == steps}
        vectors = {row: ROWS[row][0] for row in ROWS if row in rows} | dict.fromkeys(filip, 9)
        tables.append(table(rows | filip, vectors))
    put_on_page(onset_page.PAGE, "\n\n".join(tables), MARKS)


def table(rows: dict[str, Curves], vectors: dict[str, int]) -> str:
    """Return the Markdown table: R@1, what it is above the first row's (paired by seed), bytes and seconds."""
    steps = rows[next(iter(vectors))].steps
    lines = [
        f"| compared by | vectors, bytes an image | rate | R@1 after {steps:,} steps | less CLIP, mean | CPU seconds |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    first = rows[next(iter(vectors))].seeds
    for row, count in vectors.items():
        one = rows[row]
        recalls = {seed: mean_recall(points[-1]) for seed, points in one.seeds.items()}
        less = with_interval(recalls[seed] - mean_recall(first[seed][-1]) for seed in recalls if seed in first)
        seconds = with_interval(points[-1]["seconds"] for points in one.seeds.values())
        cells = [
            row, f"{count}, {256 * count:,}", f"{one.rate} of {', '.join(one.searched)}",
            with_interval(recalls.values()), "" if one.seeds is first else less, seconds,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Pooled)
