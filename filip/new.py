"""Write a study of your own pictures: ``filip new mine photos/``, then ``make run STUDY=mine``.

The pictures are a folder with captions or a table, in any layout whose files are on the disk (docs/data.md), a folder
for each class, or a list of URLs and captions. It writes data/NAME.yaml, eval/NAME.yaml and workflow/config/NAME.yaml,
which may be edited. Of fewer than a hundred pictures on the disk none is held out from the model that you use: it is
tested by two others, each trained on one half and tested on the other (NAME_half_1 and NAME_half_2).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import nothing_at, replacing
from filip.common.progress import say
from filip.eval.own_data import FEWEST, held_out_of, size_of_set
from filip.sets.columns import CAPTION_COLUMNS, URL_COLUMNS, split_columns, split_in, usual_column
from filip.sets.image_set import Item, open_images
from filip.sets.layout import FOR_EVALUATION, SPLITS, NotUnderstoodError, Reading, is_picture, walk
from filip.sets.layouts import LAYOUTS

OWN_TESTS = FOR_EVALUATION[:2]  # splits that are held out where the pictures have them
MANY_CAPTIONS = 10  # of a picture: more are rarely what a person wrote about it
WRITTEN = "# Written by `filip new`; edit it as you like.\n"
LISTED = '{"dataset": "written by `filip new`", "images": '
FROM_SCRATCH = 100_000  # pairs from which on a training does not start from the small model of the package
MANY_GPUS = 8
START = "emoji"


@dataclass
class New:
    name: str = option(MISSING, "short name of the study: a-z, 0-9 and _; the first word")
    pictures: str = option(MISSING, "folder of pictures with captions, a table of them, or a list of URLs; the second")
    start: str | None = option(
        None,
        "model that the training starts from: open_clip:…, timm:…, a file; none = from scratch (default: emoji, and "
        f"none for {FROM_SCRATCH:,} pairs and more)",
    )
    license: str = option("", "licence of the pictures, for the cards of the data and the model")
    gpus: int | None = option(None, "GPUs to train on; default: those of this machine, 0 = its CPU", at_least=0)


def main(config: New) -> None:
    """Write the cards and the study of your own pictures, some held out for testing."""
    if not re.fullmatch("[a-z0-9_]+", config.name):
        raise UserError(f"name={config.name}: a study's name has only a-z, 0-9 and _")
    if not Path("workflow/config").is_dir():
        raise UserError("there is no workflow/config here: studies are run in a checkout; go to its folder")
    if config.start not in (None, START, "none"):
        from filip.train.warm_start import check_init_from  # with torch, which takes seconds

        check_init_from(str(config.start), "start")
    place = Path(config.pictures)
    if not place.exists():
        raise UserError(nothing_at(place, "give a folder of pictures with captions, a table, or a list of URLs"))
    columns = _columns(place)
    if url := usual_column(columns, URL_COLUMNS):
        files = _of_urls(config, place, url, columns)
    else:
        files = _of_pictures(config, place)
    if there := [file for file in files if file.exists()]:
        mine = all(file.read_text(encoding="utf-8").startswith((WRITTEN, LISTED)) for file in there)
        remove = f", or rm {' '.join(map(str, there))}" if mine else ""
        raise UserError(f"{there[0]} is there already: give another name{remove}")
    for file, text in files.items():
        with replacing(file) as part:
            part.write_text(text, encoding="utf-8")
    print(f"wrote {', '.join(map(str, files))}\nnext:  make run STUDY={config.name}")


def _columns(place: Path) -> list[str]:
    """Return the columns of a table; [] for a folder, and for anything but a table."""
    if not place.is_file():
        return []
    reading = Reading(place)
    for name in ("parquet", "table"):
        if parts := LAYOUTS[name].parts(reading):
            return LAYOUTS[name].columns(parts[0], reading)
    return []


# ---- pictures on the disk --------------------------------------------------------------------------------


def _of_pictures(config: New, place: Path) -> dict[Path, str]:
    """Return the files of a study of pictures, which are listed with their captions and splits.

    With few unmarked pictures, the model trains on all; two more models train on a half each.
    """
    reading = Reading(place, inside_only=True)
    splits: Iterable[str | None] = ()
    held_out: set[str] = set()
    try:
        images = open_images(reading)
    except NotUnderstoodError:
        items, held_out = _of_classes(place)
        if not items:
            raise
        say(f"{place}: {len(items):,} pictures; the caption of each is the name of its folder")
    else:
        items, splits = images.items, images.reading.there
        say(images.summary())
        if LAYOUTS[images.layout].in_order:
            raise UserError(
                f"{place} holds its pictures in {images.layout}, which `filip new` does not split: write a card with "
                f"images: {place}, and name its split for the evaluation (docs/own_data.md)"
            )
    _show(items)
    if {SPLITS.get(name.lower()) for name in splits if name} & {*OWN_TESTS}:
        tested = open_images(replace(reading, prefer=OWN_TESTS))
        say(f"held out is what you marked: {tested.summary()}")
        held_out = {item.file for item in tested.items}
        items = [item for item in items if item.file not in held_out] + tested.items
    # so few are all trained on, and tested by a model of each half on the other one
    halves = not held_out and len(items) < 2 * FEWEST
    held_out = held_out or _held_out(items)
    if not held_out or len(held_out) == len(items):
        raise UserError(f"{place}: {len(items)} pictures with captions are too few to hold some out; give two or more")
    root = place.absolute() if place.is_dir() else place.absolute().parent

    def cards(name: str, tested: Container[str], shown: str = "test") -> dict[Path, str]:
        """Return the list of the pictures and its two cards. shown: the split that the benchmark reads."""
        table = Path("data", f"{name}.json")
        listed = [
            {
                "filename": os.path.relpath(item.file, root),
                "split": "test" if item.file in tested else "train",
                "sentences": [{"raw": caption} for caption in item.captions],
            }
            for item in items
        ]
        source = {
            **_about(config, place, name),
            "images": str(table),
            "image_root": str(root),
            "image_rules": {"min_side": 32, "max_aspect": 20.0},
            "text_rules": {"language": False, "switched_off": ["furniture"]},  # a name may look like a button
            "download": {"image_size": 256, "samples_per_shard": 1000},
            "back_translation": None,
        }
        layout = {"path": str(table.absolute()), "split": shown, "images": str(root), "layout": "karpathy"}
        return {
            table: LISTED + json.dumps(listed, ensure_ascii=False, indent=1) + "}\n",
            Path("data", f"{name}.yaml"): _yaml(source),
            Path("eval", f"{name}.yaml"): _benchmark(config, name, layout),
        }

    if not halves:
        trained = len(items) - len(held_out)
        say(f"{place}: {size_of_set(trained, len(held_out))}")
        return cards(config.name, held_out) | _study(config, trained)
    say(f"{place}: {size_of_set(len(items), len(items))}: each half is held out from a model of the other half")
    files = cards(config.name, (), "train")
    others = {item.file for item in items} - held_out
    for half, unseen in zip(_halves(config.name), (held_out, others), strict=True):
        files |= cards(half, unseen)
    return files | _study(config, len(items), halves=True)


def _of_classes(place: Path) -> tuple[list[Item], set[str]]:
    """Return the pictures in the folders of a folder, the name of its folder being the caption of each.

    Returns also the files of those in a folder that marks a test (``test/cat/1.jpg``); others marked so are left out.
    """
    by_split: dict[str | None, list[Item]] = {}
    for file, problem in sorted(walk(place, inside_only=True)):
        name = os.path.relpath(file, place)
        if problem is None and is_picture(file) and file.parent != place:
            split = next((SPLITS[part] for part in map(str.lower, Path(name).parts[:-2]) if part in SPLITS), None)
            item = Item(name, [re.sub(r"[_\W]+", " ", file.parent.name).strip()], str(file), 0, -1)
            by_split.setdefault(split, []).append(item)
    tested = next((by_split[split] for split in OWN_TESTS if split in by_split), [])
    trained = [item for split, items in by_split.items() if split not in OWN_TESTS for item in items]
    return trained + tested, {item.file for item in tested}


def _show(items: Sequence[Item]) -> None:
    """Print three captions, and warn where a picture has more than a person writes about it."""
    for item in items[:: max(1, len(items) // 3)][:3]:
        say(f"  {item.name}: {item.captions[0]}")
    most = max(items, key=lambda item: len(item.captions))
    if len(most.captions) > MANY_CAPTIONS:
        say(
            f"warning: {most.name} has {len(most.captions):,} captions, such as “{most.captions[-1]}”: each is trained "
            "on. Other languages, or lines that describe nothing, are better removed first"
        )


def _held_out(items: Sequence[Item]) -> set[str]:
    """Return the files of the pictures to hold out: by their names, and equal pictures on the same side.

    A picture that is added later moves none of the others, as long as the number held out stays the same.
    """
    sizes = Counter(os.path.getsize(item.file) for item in items)
    sides: dict[str, list[str]] = {}
    for item in items:
        alone = sizes[os.path.getsize(item.file)] == 1
        content = item.name.encode("utf-8", "surrogateescape") if alone else Path(item.file).read_bytes()
        sides.setdefault(hashlib.sha256(content).hexdigest(), []).append(item.file)
    target = held_out_of(len(items))
    chosen: set[str] = set()
    for _, files in sorted(sides.items()):
        if len(chosen) < target:
            chosen.update(files)
    return chosen


# ---- a list of URLs --------------------------------------------------------------------------------------


def _of_urls(config: New, place: Path, url: str, columns: list[str]) -> dict[Path, str]:
    """Return the files of a study of a list: it has a card to train on, and one of the rows that are held out."""
    import duckdb

    from filip.data.cards import SourceCard
    from filip.data.lists.reading import relation

    caption = usual_column(columns, CAPTION_COLUMNS)
    if caption is None:
        raise UserError(
            f"{place} has no column of captions ({', '.join(CAPTION_COLUMNS)}); it has {', '.join(columns)}"
        )
    with duckdb.connect() as con, TemporaryDirectory() as scratch:
        opened = con.sql(f"FROM {relation(SourceCard(config.name), [str(place)], Path(scratch))[0]}")
        rows = len(opened)
        of_splits = _of_splits(opened, columns)
        if of_splits is None:
            # the lowest hashes, twice as many as are held out: below their middle one are those
            reach = min(16**6 - 1, (2 * held_out_of(rows) + 1) * 16**6 // max(1, rows))
            lowest = opened.project(f"md5({url}) AS hash").filter(f"left(hash, 6) <= '{reach:06x}'").distinct()
            hashes = [row[0] for row in lowest.order("hash").fetchall()]
            if len(hashes) < 2:
                raise UserError(f"{place} has {len(hashes)} URLs, too few to hold some out; give two or more")
            bound = hashes[len(hashes) // 2][:12]
            conditions = (f"md5({url}) >= '{bound}'", f"md5({url}) < '{bound}'")
            of_splits = [(condition, len(opened.filter(condition))) for condition in conditions]
    (where_trained, trained), (where_tested, tested) = of_splits
    listed = {
        **_about(config, place, config.name),
        "list": str(place.absolute()),
        "url_column": url,
        "caption_column": caption,
        "where": where_trained,
        "back_translation": None,
    }
    held_out = {**listed, "name": f"{config.name}_held_out", "where": where_tested}
    say(f"{place}: of {rows:,} rows {size_of_set(trained, tested)}, by {where_tested}")
    layout = {"path": f"results/{config.name}/data/{config.name}_held_out/shards", "split": "all", "layout": "tars"}
    return {
        Path("data", f"{config.name}.yaml"): _yaml(listed),
        Path("data", f"{config.name}_held_out.yaml"): _yaml(held_out),
        Path("eval", f"{config.name}.yaml"): _benchmark(config, config.name, layout),
        **_study(config, trained, of_urls=True),
    }


def _of_splits(opened: Any, columns: list[str]) -> list[tuple[str, int]] | None:
    """Return the conditions and counts of the rows to train on and of those that the list marks as a test, or None."""
    for column in split_columns(tuple(columns)):
        text = f'CAST("{column}" AS VARCHAR)'
        counts: dict[str, dict[str, int]] = {}
        for value, count in opened.aggregate(f"{text}, count(*)").fetchall():
            split = split_in({column: value}) or ""
            counts.setdefault(SPLITS.get(split.lower(), split), {})[value] = count
        if (held_out := next(filter(counts.get, OWN_TESTS), None)) and "train" in counts:
            quoted = {split: ", ".join(f"'{value}'" for value in counts[split]) for split in ("train", held_out)}
            return [(f"{text} IN ({quoted[split]})", sum(counts[split].values())) for split in quoted]
    return None


# ---- the files of each -----------------------------------------------------------------------------------


def _halves(name: str) -> tuple[str, str]:
    """Return the names of the sources, benchmarks and runs of a study's two halves."""
    return f"{name}_half_1", f"{name}_half_2"


def _about(config: New, place: Path, name: str) -> dict[str, Any]:
    return {"name": name, "title": f"Pictures of {place.resolve().name}", "license": config.license}


def _benchmark(config: New, name: str, layout: dict[str, Any]) -> str:
    return _yaml(
        {
            "name": name,
            "title": name if layout["split"] == "train" else f"{name}, held out",
            "kind": "retrieval",
            "metric": "recall",
            "fine_tuned_on": [name],
            "loader": "captions",
            "layouts": {"captions": layout},
            "license": config.license,
        }
    )


def _study(config: New, pairs: int, *, of_urls: bool = False, halves: bool = False) -> dict[Path, str]:
    if (gpus := config.gpus) is None:
        import torch

        gpus = torch.cuda.device_count()
    start = config.start or ("none" if pairs >= FROM_SCRATCH else START)
    scratch = start == "none"
    experiment = ("one_node" if gpus >= MANY_GPUS else "one_gpu") if scratch else "warm_start"
    overrides = ["data.back_translation=false"]
    if not scratch:
        overrides += [f"init_from={start}", "global_batch=auto"]
    if start == START:  # it is small and was trained at such rates above a frozen stem
        overrides += ["warm_start.image=frozen_stem", "optimizer.base_lr=1e-3"]
        overrides += ["data.auto_augment=0.1", "data.crop_scale_min=0.8", "data.flip_probability=0"]
    kinds = {"clip": "pooled", "filip": "token_wise"} if scratch else {"filip": "token_wise"}
    runs = {
        run: {"label": f"{run.upper()} on {config.name}", "overrides": [f"model.interaction={interaction}"]}
        for run, interaction in kinds.items()
    }
    tested = {config.name: "filip"}  # by card: the run that did not see it
    if halves:
        tested = {half: half for half in _halves(config.name)}
        for half in tested:
            seen = {"label": f"FILIP, which did not see {half}", "sources": [half]}
            runs[half] = {**seen, "overrides": list(runs["filip"]["overrides"])}
    study: dict[str, Any] = {
        "study": config.name,
        "title": f"FILIP on {config.name}",
        "sources": [config.name],
        "launch": {"launcher": "deepspeed", "ranks_per_node": max(1, gpus), **({} if gpus else {"accelerator": "cpu"})},
        "train": {"experiment": experiment, "overrides": overrides},
        "runs": runs,
        "eval": {"root": ".", "retrieval": list(tested)},
        "tables": {"retrieval": list(tested) if halves else list(runs)},
        "explorer": {"card": config.name, "models": list(kinds)},
        "export": {"to": "hf", "models": ["filip"]},
        "own_pictures": tested,
    }
    if not scratch:
        study["peers"] = {"before": {"label": f"{start}, before the training", "model": start}}
        if start == START or start.endswith(".safetensors"):  # others' text towers are in no page
            study["explorer"]["models"] = ["before", *kinds]
    if of_urls:
        study["eval"]["sources"] = [f"{config.name}_held_out"]
    return {Path("workflow/config", f"{config.name}.yaml"): _yaml(study)}


def _yaml(content: dict[str, Any]) -> str:
    import yaml

    written = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return WRITTEN + written


if __name__ == "__main__":
    run_command(main, New, words=("name", "pictures"))
