"""Build the demo corpus: fetch the packages, render the drawings, write the training list and the test sets.

Below ``out``: ``images/<artist>/<slug>.png`` and ``planted/…`` (what the server serves), ``list.parquet``
(url, caption, group, artist, concept, label, planted), ``held_out/…`` (drawings of the test artists),
``eval/<dataset>/…``, ``attribution.json`` and, last, ``corpus.json``. A second build finds its images and
only rewrites the lists; equal settings give equal bytes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from filip.command import MISSING, option, run_command
from filip.data.demo.artists import ARTISTS, PACKAGES, Artist
from filip.data.demo.captions import caption_of
from filip.data.demo.catalogue import Catalogue, Drawing, hash_of
from filip.data.demo.evaluation import (
    FLAT,
    FLUENT,
    NAMED,
    Benchmark,
    benchmarks,
    test_split,
    tone_drawings,
    write_benchmark,
)
from filip.data.demo.faulty_rows import PLANTED, PlantedRow, plant, write_planted
from filip.data.demo.packages import fetch_packages
from filip.data.demo.render import SIDE, Job, render_all, svg_document
from filip.errors import UserError
from filip.files import replacing, write_json

TONES_PER_CONCEPT = (
    2  # skin tones kept per artist and concept, beside the plain drawing: else 56 % are people
)


@dataclass
class Corpus:
    out: str = option(MISSING, "folder that will hold the corpus")
    port: int = option(
        8765, "port of the server (filip.data.demo.server): it is part of the URLs in the list"
    )
    limit: int | None = option(None, "keep only this many concepts (tests); null = all")
    cache: str = option(".cache/demo", "folder where the npm packages are kept")
    processes: int = option(0, "processes that render; 0 = one per core")


def main(config: Corpus) -> None:
    """Build the demo corpus: emoji of nine artists with their CLDR names, as a URL list and test sets."""
    if config.limit is not None and config.limit < 8:
        raise UserError(f"limit={config.limit}: at least 8 concepts are needed to fill the test sets")
    started = time.monotonic()
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    modules = fetch_packages(config.cache)
    catalogue = Catalogue(modules)
    drawings = {artist.key: catalogue.drawings(artist) for artist in ARTISTS}
    concepts = frozenset(choose_concepts(catalogue, drawings, config.limit))
    drawings = {key: [d for d in ds if d.emoji.concept in concepts] for key, ds in drawings.items()}

    training, own = train_and_test(catalogue, drawings)
    sets = benchmarks(catalogue, drawings[FLUENT], drawings[FLAT], own)
    processes = config.processes or len(os.sched_getaffinity(0))
    rendered = render_all(_jobs(training, out / "images", masks=False), processes, "training images")
    rendered += render_all(_jobs(_shown(sets), out / "held_out", masks=True), processes, "test images")

    planted = plant(catalogue, training)
    write_planted(planted, out / "images", out)
    table = training_table(training, planted, f"http://127.0.0.1:{config.port}")
    write_table(table, out / "list.parquet")
    for benchmark in sets:
        write_benchmark(benchmark, out / "held_out", out / "eval", catalogue.held_out)
    write_json(out / "attribution.json", attribution(modules, table, sets))
    counts = corpus_counts(catalogue, concepts, table, sets)
    write_json(out / "corpus.json", {**counts, "limit": config.limit, "port": config.port})
    print(
        f"demo corpus in {out}: {counts['pairs']:,} pairs and {counts['planted_rows']} planted rows, "
        f"{len(sets)} test sets; rendered {rendered:,} images; {time.monotonic() - started:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def choose_concepts(catalogue: Catalogue, drawings: dict[str, list[Drawing]], limit: int | None) -> list[str]:
    """All concepts, or ``limit`` of them that fill every test set: in turn from each one, by hash."""
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


def train_and_test(
    catalogue: Catalogue, drawings: dict[str, list[Drawing]]
) -> tuple[list[Drawing], list[Drawing]]:
    """The trained artists' drawings: those to train on, and their test split."""
    whole = [d for a in ARTISTS if not a.test for d in training_drawings(catalogue, drawings[a.key])]
    own = test_split(whole)
    kept_out = {(d.artist, d.slug) for d in own}
    return [d for d in whole if (d.artist, d.slug) not in kept_out], own


def training_drawings(catalogue: Catalogue, drawings: list[Drawing]) -> list[Drawing]:
    """What of an artist's drawings is trained on: no held-out concept, a few skin tones of the others."""
    tones: dict[str, list[Drawing]] = {}
    for drawing in drawings:
        if drawing.emoji.tones:
            tones.setdefault(drawing.emoji.concept, []).append(drawing)
    kept = set()
    for variants in tones.values():  # by hash: another artist keeps other tones
        variants.sort(key=lambda d: hash_of(f"{d.artist} {d.slug}"))
        kept |= {d.emoji.code for d in variants[:TONES_PER_CONCEPT]}
    seen = [d for d in drawings if d.emoji.concept not in catalogue.held_out]
    return [d for d in seen if not d.emoji.tones or d.emoji.code in kept]


def training_table(training: list[Drawing], planted: list[PlantedRow], server: str) -> pa.Table:
    """The URL list, in an order given by a hash: good and planted rows and all artists are mixed evenly."""
    rows = [(f"images/{d.artist}/{d.slug}.png", caption_of(d), d.artist, d.emoji, "") for d in training]
    rows += [(p.path, p.caption, p.drawing.artist, p.emoji, p.kind) for p in planted]
    rows.sort(key=lambda row: hash_of(row[0]))
    return pa.table(
        {
            "url": pa.array([f"{server}/{path}" for path, *_ in rows], pa.string()),
            "caption": pa.array([caption for _, caption, *_ in rows], pa.string()),
            "group": pa.array([emoji.content_id for _, _, _, emoji, _ in rows], pa.int64()),
            "artist": pa.array([artist for _, _, artist, _, _ in rows], pa.string()),
            "concept": pa.array([emoji.concept for _, _, _, emoji, _ in rows], pa.string()),
            "label": pa.array([emoji.label for _, _, _, emoji, _ in rows], pa.string()),
            "planted": pa.array([kind for *_, kind in rows], pa.string()),
        }
    )


def attribution(modules: Path, table: pa.Table, sets: list[Benchmark]) -> dict[str, Any]:
    """Whom the licences oblige to name, and for how many images: by artist, then the source of the names."""
    trained = Counter(table.filter(pa.compute.equal(table["planted"], ""))["artist"].to_pylist())
    shown = Counter(d.artist for d in _shown(sets))  # of a trained artist only the test split is shown
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
            "images": shown[artist.key] + trained[artist.key],
            "changes": f"rendered to {SIDE} x {SIDE} pixels on white",
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


def corpus_counts(
    catalogue: Catalogue, concepts: frozenset[str], table: pa.Table, sets: list[Benchmark]
) -> dict[str, Any]:
    """What ``corpus.json`` says: counts of everything, the packages and their versions."""
    planted = Counter(table["planted"].to_pylist())
    good = table.filter(pa.compute.equal(table["planted"], ""))
    repeats = Counter(good["caption"].to_pylist())
    return {
        "rows": len(table),
        "pairs": planted.pop(""),
        "planted_rows": sum(planted.values()),
        "planted": {kind: planted[kind] for kind in PLANTED},
        "concepts": len(concepts),
        "held_out_concepts": len(concepts & catalogue.held_out),
        "trained_concepts": len(set(good["concept"].to_pylist())),
        "distinct_captions": len(repeats),
        "most_repeated_caption": max(repeats.values()),
        "artists": {a.key: _role(a) for a in ARTISTS},
        "pairs_by_artist": dict(sorted(Counter(good["artist"].to_pylist()).items())),
        "image_side": SIDE,
        "eval": {s.name: s.summary for s in sets},
        "packages": PACKAGES,
    }


def write_table(table: pa.Table, path: Path) -> None:
    with replacing(path) as part:
        pq.write_table(table, part)


def _role(artist: Artist) -> str:
    return "test" if artist.test else "training"


def _shown(sets: list[Benchmark]) -> list[Drawing]:
    """Each drawing that some test set shows, once."""
    return list({(d.artist, d.slug): d for s in sets for d, _ in s.items}.values())


def _jobs(drawings: Iterable[Drawing], folder: Path, masks: bool) -> list[Job]:
    jobs = []
    for drawing in drawings:
        stem = f"{folder}/{drawing.artist}/{drawing.slug}"
        jobs.append(Job(svg_document(drawing), f"{stem}.png", f"{stem}.mask.png" if masks else None))
    return jobs


if __name__ == "__main__":
    run_command(main, Corpus)
