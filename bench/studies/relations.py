"""Teach models that know names what is left, right, above and below: a table of docs/token_wise.md.

    python -m bench.studies.relations                # after `make demo SEEDS=5`; what records/relations/ lacks
    python -m bench.studies.relations page=true      # write the table from what is there

Each training continues one of the demo's smooth models: LEARN steps in which nearly every scene of two or more things
has a caption that tells a relation, then KEEP steps with the demo's own captions. The rows differ in the loss. The
sentences that tell a relation are added to the side-cars as captions made from the image (data.recaption_weight).
Lengths and weights were chosen with seed SEARCH, from the demo's first model, on the scenes of `demo_scenes_search`.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from bench.demo_training import DemoTraining, recall_of, run
from bench.readme import put_on_page
from bench.studies import onset, onset_page
from bench.studies.dose import training_sprites
from bench.studies.onset_page import with_interval
from filip.command import option, run_command
from filip.data.sidecar import OF_IMAGE, read_sidecar, write_sidecar
from filip.eval.cards import load_card
from filip.eval.context import Context
from filip.eval.protocols.selection import select
from filip.eval.scorer import RANKINGS, load_scorer
from filip.files import write_json
from filip.progress import say
from filip.train.provenance import commit
from filip_demo.scene_captions import relation_caption
from filip_demo.scene_sets import TRAINING_SEED
from filip_demo.scenes import Scene, training_scene
from workflow.estimate import cpu_name

DATA = Path("records/relations")
MARKS = ("<!-- relations:begin -->", "<!-- relations:end -->")
SEARCH, SEEDS = 100, (0, 1, 2, 3, 4)
LEARN, KEEP = 500, 300
SENTENCES = 4  # drawn for each scene; duplicates count once
START = "before"
ROWS = {
    "without the term": ["loss.token_wise=1"],
    "with `reversed_relations`": ["loss.token_wise=0", "loss.reversed_relations=1"],
}


@dataclass
class Relations(DemoTraining):
    """The trainings to add."""

    results: str = option("results/demo", "results of the demo")
    cache: str = option(".cache/demo", "folder of the npm packages")
    captions: str = option("results/relations/captions", "folder for the captions with relations")
    experiment: str = option("demo_small", "experiment of every training, as the demo's")
    seeds: list[int] = option([*SEEDS], f"seeds; {SEARCH} looks at the scenes of the search")
    page: bool = option(False, "write the table, and train nothing")


def main(study: Relations) -> None:
    """Evaluate the demo's models and train what is missing."""
    if study.page:
        put_on_page(onset_page.PAGE, table(read()), MARKS)
        return
    with_relations = Path(study.captions)
    if not (with_relations / "complete").exists():
        write_captions(study, with_relations)
    for seed in study.seeds:
        suffix = f"_s{seed}" if 0 < seed < SEARCH else ""
        model = Path(study.results) / "models" / f"smooth{suffix}.safetensors"
        for row in (START, *(study.only or ROWS)):
            keep(study, row, seed, model)


def write_captions(study: Relations, folder: Path) -> None:
    """Copy the demo's captions, adding up to SENTENCES relations to each scene of two or more things."""
    shards, captions = (Path(study.results) / "data" / "demo" / name for name in ("shards", "captions"))
    sprites = training_sprites(study.results, study.cache)
    concepts = sorted(sprites)
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(captions.glob("*.parquet")):
        say(f"relations of the scenes in {file.name}")
        found = pq.read_table(shards / file.name, columns=["key", "url"]).to_pylist()
        scenes = {row["key"]: Path(row["url"]).stem for row in found if "/scenes/" in row["url"]}
        rows = read_sidecar(file)
        for row in rows:
            if row["key"] in scenes:
                scene = training_scene(sprites, concepts, TRAINING_SEED, int(scenes[row["key"]]))
                told = sorted(set(relations_of(scene)))
                row["captions"] += told
                row["origins"] += [f"scene{OF_IMAGE}"] * len(told)
        write_sidecar(folder / file.name, rows)
    (folder / "complete").touch()


def relations_of(scene: Scene) -> Iterator[str]:
    draw = random.Random(f"relations {scene.index}")
    for _ in range(SENTENCES if len(scene.things) > 1 else 0):
        sentence = relation_caption(draw.sample(scene.things, len(scene.things)), draw)
        if sentence:
            yield sentence


def trained(study: Relations, row: str, seed: int, model: Path) -> tuple[Path, float]:
    """Train both parts and return the model with the processor seconds that it took."""
    study = replace(study, sources=study.sources.replace(f"{study.results}/data/demo/captions", study.captions))
    common = [*ROWS[row], "precision=fp32", "optimizer.base_lr=4e-3", "token_maximum=smooth",
              "token_temperature=0.05", f"seed={seed}"]  # fmt: skip
    seconds = 0.0
    # a weight of 1,000: scenes with a relation are hardly ever given another caption
    for part, steps, weight in (("learned", LEARN, 1000), ("kept", KEEP, 0)):
        out = Path(tempfile.gettempdir()) / f"relations_{part}.safetensors"
        settings = [*common, f"init_from={model}", f"data.recaption_weight={weight}"]
        outcome = run(replace(study, steps=steps, warmup_steps=50), settings, save=out)
        model, seconds = out, seconds + outcome.seconds
    return model, seconds


def keep(study: Relations, row: str, seed: int, model: Path) -> None:
    """Train further (unless the row is START), evaluate, and keep the results in DATA; do nothing if they are there."""
    file = DATA / f"{row.replace('`', '').replace(' ', '-')}-{seed}.json"
    if file.exists():
        return
    model, seconds = (model, 0.0) if row == START else trained(study, row, seed, model)
    card = onset.SEARCH_CARD if seed == SEARCH else onset.CARD
    scenes = load_card(card)
    relation = load_card("eval/demo_select_relation.yaml")
    relation = replace(relation, layout=replace(relation.layout, path=scenes.layout.path))
    scorer = load_scorer(str(model))
    chosen = select(scorer, relation, Context(study.root))
    recall = recall_of(scorer, replace(study, card=card))
    found = {
        "relation": {by: round(100 * float(chosen[by]["value"]), 1) for by in RANKINGS},
        "recall": {way: round(recall[f"{way} r1"], 1) for way in ("i2t", "t2i")},
    }
    say(f"{row}, seed {seed}: {json.dumps(found)}")
    where = {"card": scenes.name, "seconds": round(seconds, 1), "commit": commit(), "cpu": cpu_name()}
    write_json(file, {"row": row, "seed": seed, **found, **where})


def read() -> dict[str, list[dict[str, Any]]]:
    """Return the records of the reported seeds by row, in the order of ROWS."""
    files = sorted(DATA.glob("*.json"))
    found = [one for one in (json.loads(file.read_text(encoding="utf-8")) for file in files) if one["seed"] != SEARCH]
    return {row: own for row in (START, *ROWS) if (own := [one for one in found if one["row"] == row])}


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown table: which of two opposite captions is chosen, R@1 both ways, and seconds."""
    lines = [
        "| further training | seeds | relation, by s^I | by s^T | R@1, image → text | text → image | CPU seconds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| *chance* | | *50* | *50* | *0.1* | *0.1* | |",
    ]
    for row, own in rows.items():
        measured = [
            *([one["relation"][by] for one in own] for by in RANKINGS[:2]),
            *([one["recall"][way] for one in own] for way in ("i2t", "t2i")),
        ]
        seconds = f"{fmean(one['seconds'] for one in own):.0f}"
        lines.append(f"| {' | '.join([row, str(len(own)), *map(with_interval, measured), seconds])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main, Relations)
