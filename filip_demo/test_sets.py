"""Test sets of the demo corpus in CLIP_benchmark's webdataset layout: drawings of the held-out artists, and one set of
drawings by the trained artists that are kept out of the training list.

Each image comes with the mask of its object (``.mask.png``, 0 or 255) and a ``.json`` with its origin;
readers that do not know them ignore them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filip_demo.catalogue import Catalogue, Drawing, hash_of
from filip_demo.render import write_atomically

FLUENT, FLAT = "fluent-emoji", "fluent-emoji-flat"
OWN = "demo_test"
TEMPLATES = ["{c}", "{c}.", "a {c}", "the {c}"]
TONES = ["light skin tone", "medium-light skin tone", "medium skin tone", "medium-dark skin tone", "dark skin tone"]
GROUPS = {  # CLDR's own names of its groups
    "smileys-emotion": "smileys & emotion",
    "people-body": "people & body",
    "animals-nature": "animals & nature",
    "food-drink": "food & drink",
    "travel-places": "travel & places",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
# Classification by name: the classes are the labels of the emoji that pass.
NAMED: dict[str, Callable[[Drawing], bool]] = {
    "demo_animals": lambda d: d.emoji.subgroup.startswith("animal-"),
    "demo_food": lambda d: d.emoji.group == "food-drink",
    "demo_activities": lambda d: d.emoji.group == "activities",
    "demo_objects": lambda d: d.emoji.group == "objects",
    "demo_travel": lambda d: d.emoji.group == "travel-places",
    "demo_smileys": lambda d: d.emoji.group == "smileys-emotion",
}
TONE_CONCEPTS = 60  # concepts in demo_skin_tone, times 5 tones and 2 sets of drawings
GROUP_CONCEPTS = 50  # at most so many concepts of each group in demo_groups, times 2 sets of drawings


@dataclass(frozen=True)
class Benchmark:
    """A test set. ``items``: (drawing, text), where text is a caption (``classes`` is None) or one of ``classes``."""

    name: str
    items: list[tuple[Drawing, str]]
    classes: list[str] | None = None

    @property
    def summary(self) -> dict[str, Any]:
        kind = "retrieval" if self.classes is None else "classification"
        texts = {"captions": len(self.items)} if self.classes is None else {"classes": len(self.classes)}
        return {"kind": kind, "images": len(self.items), **texts, "artists": sorted({d.artist for d, _ in self.items})}


def test_split(training: list[Drawing]) -> list[Drawing]:
    """Return a drawing of every third concept, by hash: the training artists' test split, for ``demo_test``.

    Only concepts that three of them drew are used, so that each of these is still trained on.
    """
    by_concept: dict[str, list[Drawing]] = {}
    for drawing in training:
        if not drawing.emoji.tones:
            by_concept.setdefault(drawing.emoji.concept, []).append(drawing)
    often = sorted((c for c, ds in by_concept.items() if len(ds) >= 3), key=hash_of)
    return [min(by_concept[c], key=lambda d: hash_of(f"test {d.artist} {d.slug}")) for c in often[::3]]


def benchmarks(catalogue: Catalogue, fluent: list[Drawing], flat: list[Drawing], own: list[Drawing]) -> list[Benchmark]:
    """Return all test sets that are not empty in a reduced corpus. ``own``: see test_split."""
    plain = {name: [d for d in ds if not d.emoji.tones] for name, ds in ((FLUENT, fluent), (FLAT, flat))}
    both = plain[FLUENT] + plain[FLAT]
    unseen = [d for d in plain[FLUENT] if d.emoji.concept in catalogue.held_out]
    sets = [
        Benchmark("demo_fluent", [(d, d.emoji.label) for d in plain[FLUENT]]),
        Benchmark("demo_flat", [(d, d.emoji.label) for d in plain[FLAT]]),
        Benchmark("demo_unseen", [(d, d.emoji.label) for d in unseen]),
        Benchmark(OWN, [(d, d.emoji.label) for d in own]),
    ]
    for name, passes in NAMED.items():
        chosen = [d for d in both if passes(d)]
        classes = list(dict.fromkeys(d.emoji.label for d in chosen))
        sets.append(Benchmark(name, [(d, d.emoji.label) for d in chosen], classes))
    toned = tone_drawings(fluent, flat)
    sets.append(Benchmark("demo_skin_tone", [(d, TONES[d.emoji.tones[0] - 1]) for d in toned], TONES))
    grouped = _first_by_group(both)
    present = [name for key, name in GROUPS.items() if any(d.emoji.group == key for d in grouped)]
    sets.append(Benchmark("demo_groups", [(d, GROUPS[d.emoji.group]) for d in grouped], present))
    return [s for s in sets if s.items]


def without_copies(benchmark: Benchmark, held_out: Path, trained: Iterable[Path]) -> Benchmark:
    """Return the test set without the drawings that equal a training drawing, pixel by pixel.

    Artists draw some things once and give them several names: Clipperton Island has the flag of France.
    """
    seen = {hashlib.sha256(path.read_bytes()).digest() for path in trained}
    items = [
        (drawing, text)
        for drawing, text in benchmark.items
        if hashlib.sha256((held_out / drawing.artist / f"{drawing.slug}.png").read_bytes()).digest() not in seen
    ]
    return replace(benchmark, items=items)


def tone_drawings(fluent: list[Drawing], flat: list[Drawing]) -> list[Drawing]:
    """Return the drawings of demo_skin_tone: all five tones of some concepts, from both sets."""
    by_concept: dict[str, list[Drawing]] = {}
    for drawing in fluent + flat:
        if len(drawing.emoji.tones) == 1:
            by_concept.setdefault(drawing.emoji.concept, []).append(drawing)
    whole = sorted((c for c, ds in by_concept.items() if len(ds) == 2 * len(TONES)), key=hash_of)
    return [d for concept in whole[:TONE_CONCEPTS] for d in by_concept[concept]]


def _first_by_group(drawings: list[Drawing]) -> list[Drawing]:
    firsts: list[Drawing] = []
    for group in GROUPS:
        members = [d for d in drawings if d.emoji.group == group]
        concepts = sorted({d.emoji.concept for d in members}, key=hash_of)[:GROUP_CONCEPTS]
        firsts += [d for d in members if d.emoji.concept in set(concepts)]
    return firsts


def write_benchmark(benchmark: Benchmark, images: Path, root: Path, unseen: frozenset[str]) -> None:
    """Write ``root/<name>/…``. The images and masks are at ``images/<artist>/<slug>.png`` and ``.mask.png``.

    The order is by hash, so that the first n samples of any n are a fair sample.
    """
    folder = root / benchmark.name
    split = folder / "test"
    split.mkdir(parents=True, exist_ok=True)
    if benchmark.classes is None:
        write_atomically(folder / "dataset_type.txt", b"retrieval\n")
    else:
        write_atomically(folder / "classnames.txt", _lines(benchmark.classes))
        write_atomically(folder / "zeroshot_classification_templates.txt", _lines(TEMPLATES))
    items = sorted(benchmark.items, key=lambda item: hash_of(f"{item[0].artist} {item[0].slug}"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (drawing, text) in enumerate(items):
            key = f"s{number:07d}"
            stem = images / drawing.artist / drawing.slug
            add_member(tar, f"{key}.png", Path(f"{stem}.png").read_bytes())
            if benchmark.classes is None:
                add_member(tar, f"{key}.txt", text.encode())
            else:
                add_member(tar, f"{key}.cls", str(benchmark.classes.index(text)).encode())
            add_member(tar, f"{key}.mask.png", Path(f"{stem}.mask.png").read_bytes())
            add_member(tar, f"{key}.json", _origin(drawing, unseen))
    write_atomically(split / "0.tar", buffer.getvalue())
    write_atomically(split / "nshards.txt", b"1\n")


def _origin(drawing: Drawing, unseen: frozenset[str]) -> bytes:
    emoji = drawing.emoji
    about = {
        "artist": drawing.artist,
        "code": emoji.code,
        "label": emoji.label,
        "group": emoji.group,
        "subgroup": emoji.subgroup,
        "unseen": emoji.concept in unseen,
    }
    return json.dumps(about, ensure_ascii=False).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and mode are TarInfo's constants: equal builds, equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _lines(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
