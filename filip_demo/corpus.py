"""Build the demo corpus: fetch the packages, render the drawings, write the training list and the test sets.

Below ``out``: ``images/<artist>/<slug>.png``, ``images/scenes/NNNNNN.png`` and ``planted/…`` (what the server
serves), ``list.parquet`` (url, caption, group, artist, concept, label, planted; a scene names the artists, concepts
and labels of its things, joined by ";"), ``captions.csv`` (path, caption, group: the same images without URLs),
``held_out/…`` (drawings of the test sets), ``sprites/…`` (drawings cut
out, for scenes), ``eval/<dataset>/…``, ``attribution.json`` and, last, ``corpus.json``. A second build finds its
images and only rewrites the lists; equal settings give equal bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa

from filip.cli.command import MISSING, option, run_command
from filip.common.files import write_json
from filip_demo.catalogue import Catalogue, Drawing, hash_of
from filip_demo.faulty_rows import PLANTED, plant, spoil
from filip_demo.packages import ARTISTS, PACKAGES, Artist, fetch_packages
from filip_demo.render import SIDE, Rendering, render_all, svg_document, write_atomically
from filip_demo.scene_sets import (
    SceneFacts,
    name_and_relation_choices,
    scene_makers,
    write_scene_sets,
    write_training_scenes,
)
from filip_demo.scenes import in_scenes, load_sprites, training_scene
from filip_demo.test_sets import (
    FLAT,
    FLUENT,
    NAMED,
    OWN,
    Benchmark,
    benchmarks,
    test_split,
    tone_drawings,
    without_copies,
    write_benchmark,
)
from filip_demo.training_list import training_table, write_captions, write_table

# Skin tones kept per artist and concept, next to the plain drawing; with all, 56 % of the drawings would be people.
TONES_PER_CONCEPT = 2
TRAINING_SEED = 0


@dataclass
class Corpus:
    out: str = option(MISSING, "folder that will hold the corpus", writes="folder")
    port: int = option(
        8765, "port of the server (filip_demo.serving): it is part of the URLs in the list", at_least=1, at_most=65535
    )
    limit: int | None = option(None, "keep only this many concepts (tests); null = all", at_least=8)
    scenes: int = option(26_000, "training scenes to compose of the drawings", at_least=0)
    test_scenes: int = option(1000, "scenes in each test set of scenes", at_least=1)
    cache: str = option(".cache/demo", "folder where the npm packages are kept")
    processes: int = option(0, "processes that render; 0 = one per core", at_least=0)


def main(config: Corpus) -> None:
    """Build the demo corpus: emoji of nine artists with their CLDR names, as a URL list and test sets."""
    started = time.monotonic()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    modules = fetch_packages(config.cache)
    catalogue = Catalogue(modules)
    drawings = {artist.key: catalogue.drawings(artist) for artist in ARTISTS}
    concepts = frozenset(choose_concepts(catalogue, drawings, config.limit))
    drawings = {key: [d for d in ds if d.emoji.concept in concepts] for key, ds in drawings.items()}

    training, test_drawings = train_and_test(catalogue, drawings)
    sets = benchmarks(catalogue, drawings[FLUENT], drawings[FLAT], test_drawings)
    unlisted = [d for a in ARTISTS if not a.test for d in drawings[a.key] if d.emoji.concept in catalogue.held_out]
    trained = [d for d in training + unlisted if in_scenes(d.emoji)]
    unseen_artist = [d for d in drawings[FLUENT] if in_scenes(d.emoji)]
    processes = config.processes or len(os.sched_getaffinity(0))
    rendered = render_all(_jobs(out, training, _shown(sets), trained + unseen_artist), processes, "drawings")
    pictures = [out / "images" / d.artist / f"{d.slug}.png" for d in training]
    sets = [without_copies(s, out / "held_out", pictures) if s.name == OWN else s for s in sets]

    sprites = load_sprites(trained, out / "sprites")
    known = sorted(set(sprites) - catalogue.held_out)
    compose = partial(training_scene, sprites, known, TRAINING_SEED)
    scenes = write_training_scenes(out, compose, config.scenes if known else 0, processes)
    makers = scene_makers(sprites, load_sprites(unseen_artist, out / "sprites"), catalogue.held_out)
    choices = partial(name_and_relation_choices, catalogue.emoji, known)
    scene_counts = write_scene_sets(makers, out / "eval", config.test_scenes, processes, choices)

    planted = plant(catalogue, training)
    for row in planted:
        good = (out / "images" / row.drawing.artist / f"{row.drawing.slug}.png").read_bytes()
        if (spoiled := spoil(row.kind, good)) is not None:
            write_atomically(out / row.path, spoiled)
    table = training_table(training, scenes, planted, f"http://127.0.0.1:{config.port}")
    write_table(table, out / "list.parquet")
    write_captions(table, out / "captions.csv")
    for benchmark in sets:
        write_benchmark(benchmark, out / "held_out", out / "eval", catalogue.held_out)
    write_json(out / "attribution.json", attribution(modules, training, scenes, sets, scene_counts))
    os.sync()
    counts = corpus_counts(catalogue, concepts, table, len(scenes))
    counts["eval"] = {s.name: s.summary for s in sets} | scene_counts
    write_json(out / "corpus.json", {**counts, "limit": config.limit, "port": config.port})
    print(
        f"demo corpus in {out}: {counts['pairs']:,} pairs, of which {len(scenes):,} scenes, and "
        f"{counts['planted_rows']} planted rows, {len(counts['eval'])} test sets; rendered {rendered:,} drawings; "
        f"{time.monotonic() - started:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def choose_concepts(catalogue: Catalogue, drawings: dict[str, list[Drawing]], limit: int | None) -> list[str]:
    """Return all concepts, or ``limit`` of them that fill every test set: taken from each in turn, by hash."""
    if limit is None:
        return catalogue.concepts
    both = {d.emoji.concept: d for d in drawings[FLAT] if not d.emoji.tones}
    drawn = {d.emoji.concept for d in drawings[FLUENT]}
    both = {concept: d for concept, d in both.items() if concept in drawn}
    toned = {d.emoji.concept for d in drawings[FLAT] if d.emoji.tones} & {
        d.emoji.concept for d in tone_drawings(drawings[FLUENT], drawings[FLAT])
    }
    pools = [{c for c in both if c in catalogue.held_out}, {c for c in both if c in toned}]
    pools += [{c for c, d in both.items() if passes(d)} for passes in NAMED.values()]
    ordered = [sorted(pool, key=hash_of) for pool in pools]
    ordered[1:] = [[c for c in pool if c not in catalogue.held_out] for pool in ordered[1:]]
    turns = [c for turn in zip_longest(*ordered) for c in turn if c is not None]
    return list(dict.fromkeys(turns))[:limit]


def train_and_test(catalogue: Catalogue, drawings: dict[str, list[Drawing]]) -> tuple[list[Drawing], list[Drawing]]:
    """Return the training artists' drawings: those to train on, and their test split."""
    whole = [d for a in ARTISTS if not a.test for d in training_drawings(catalogue, drawings[a.key])]
    test_drawings = test_split(whole)
    kept_out = {(d.artist, d.slug) for d in test_drawings}
    return [d for d in whole if (d.artist, d.slug) not in kept_out], test_drawings


def training_drawings(catalogue: Catalogue, drawings: list[Drawing]) -> list[Drawing]:
    """Return an artist's drawings to train on: no held-out concept, and a few skin tones of the others."""
    tones: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        if drawing.emoji.tones:
            tones.setdefault(drawing.emoji.concept, []).append(drawing)
    kept = set()
    for variants in tones.values():  # by hash, so that another artist keeps other tones
        variants.sort(key=lambda d: hash_of(f"{d.artist} {d.slug}"))
        kept |= {d.emoji.code for d in variants[:TONES_PER_CONCEPT]}
    seen = [d for d in drawings if d.emoji.concept not in catalogue.held_out]
    return [d for d in seen if not d.emoji.tones or d.emoji.code in kept]


def attribution(
    modules: Path, training: list[Drawing], scenes: list[SceneFacts], sets: list[Benchmark], scene_sets: dict[str, Any]
) -> dict[str, Any]:
    """Return the authors that the licences require to name, with image counts: artists, then the source of the names.

    ``images`` counts drawings shown alone, ``scenes`` training scenes that show a drawing by the artist.
    Which artists a scene takes from is in the list's column ``artist`` and in the test scenes' ``.json``.
    """
    alone = Counter(d.artist for d in training + _shown(sets))
    in_training_scenes = Counter(artist for scene in scenes for artist in set(scene.artists))
    entries: dict[str, Any] = {}
    for artist in ARTISTS:
        info = json.loads((modules / artist.package / "info.json").read_text())
        entries[artist.key] = {
            "title": info["name"],
            "author": info["author"]["name"],
            "homepage": info["author"]["url"],
            "license": info["license"]["spdx"],
            "license_url": info["license"]["url"],
            "package": f"{artist.package}@{artist.version}",
            "role": _role(artist),
            "images": alone[artist.key],
            "scenes": in_training_scenes[artist.key],
            "test_scenes": sorted(name for name, s in scene_sets.items() if artist.key in s["artists"]),
            "changes": f"rendered to {SIDE} x {SIDE} pixels on white; cut out, scaled and composed into scenes",
        }
    names = json.loads((modules / "emojibase-data" / "package.json").read_text())
    entries["emojibase-data"] = {
        "title": "Emojibase data: names and keywords of the Unicode Common Locale Data Repository",
        "author": "Miles Johnson; Unicode, Inc.",
        "homepage": "https://emojibase.dev",
        "license": names["license"],
        "license_url": "https://github.com/milesj/emojibase/blob/master/LICENSE",
        "package": f"emojibase-data@{names['version']}",
        "role": "captions",
    }
    return entries


def corpus_counts(catalogue: Catalogue, concepts: frozenset[str], table: pa.Table, scenes: int) -> dict[str, Any]:
    """Return the content of ``corpus.json``: counts of everything, the packages and their versions."""
    planted = Counter(table["planted"].to_pylist())
    good = table.filter(pa.compute.equal(table["planted"], ""))
    alone = good.filter(pa.compute.invert(pa.compute.match_substring(good["url"], "/images/scenes/")))
    repeats = Counter(good["caption"].to_pylist())
    return {
        "rows": len(table),
        "pairs": planted.pop(""),
        "scenes": scenes,
        "planted_rows": sum(planted.values()),
        "planted": {kind: planted[kind] for kind in PLANTED},
        "concepts": len(concepts),
        "held_out_concepts": len(concepts & catalogue.held_out),
        "trained_concepts": len(set(alone["concept"].to_pylist())),
        "distinct_captions": len(repeats),
        "most_repeated_caption": max(repeats.values()),
        "artists": {a.key: _role(a) for a in ARTISTS},
        "drawings_by_artist": dict(sorted(Counter(alone["artist"].to_pylist()).items())),
        "image_side": SIDE,
        "packages": PACKAGES,
    }


def _role(artist: Artist) -> str:
    return "test" if artist.test else "training"


def _shown(sets: list[Benchmark]) -> list[Drawing]:
    """Return each drawing that some test set shows, once."""
    return list({(d.artist, d.slug): d for s in sets for d, _ in s.items}.values())


def _jobs(out: Path, training: list[Drawing], shown: list[Drawing], cut_out: list[Drawing]) -> list[Rendering]:
    """Return a job for each drawing, with all the files to make from it."""
    files: dict[str, dict[str, str]] = {}
    drawings = {f"{d.artist}/{d.slug}": d for d in [*training, *shown, *cut_out]}
    for drawing in training:
        stem = f"{drawing.artist}/{drawing.slug}"
        files.setdefault(stem, {})["image"] = f"{out}/images/{stem}.png"
    for drawing in shown:
        stem = f"{drawing.artist}/{drawing.slug}"
        files.setdefault(stem, {}).update(image=f"{out}/held_out/{stem}.png", mask=f"{out}/held_out/{stem}.mask.png")
    for drawing in cut_out:
        stem = f"{drawing.artist}/{drawing.slug}"
        files.setdefault(stem, {})["sprite"] = f"{out}/sprites/{stem}.png"
    return [Rendering(svg_document(drawings[stem]), **paths) for stem, paths in files.items()]


if __name__ == "__main__":
    run_command(main, Corpus)
