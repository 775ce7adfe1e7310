"""The funnel of a data set as one page: each stage's drops, samples of every rule, and the pairs of training.

    filip report funnel fragments=[text_rules.json,download.json] shards=[SHARDS] captions=[CAPTIONS] out=funnel.html

Pictures are read from the shards, also where their tars are in a bucket; pairs never stored are shown by their text.
"""

from __future__ import annotations

import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import replacing
from filip.common.progress import say
from filip.common.table_writer import Grid, Head, Line, Shown, render
from filip.data.funnel import Fragment, read_fragment
from filip.data.remote_tars import is_there
from filip.data.shard_index import shard_images
from filip.data.sidecar import read_sidecar
from filip.images.rgb import UNDECODABLE, read_rgb
from filip.loading.config import AugmentConfig
from filip.loading.transforms import TrainTransform
from filip.report import plots
from filip.report.page import inline, rendered, webp
from filip.report.style import TEMPLATES, style

DRAWS = 3  # times that the training's random transform is shown, per picture
WIDEST = 192  # pixels of a picture


@dataclass
class FunnelPage(AugmentConfig):
    fragments: list[str] = option(MISSING, "funnel fragments in the order of the stages, or a merged funnel")
    out: str = option(MISSING, "page to write, .html", writes="file")
    shards: list[str] = option([], "folders of the shards, one for each source in the order of the fragments")
    captions: list[str] = option([], "folders of the side-cars that training reads, likewise")
    count: int = option(8, "pairs of each source that are shown as training sees them", at_least=1)
    image_size: int = option(128, "pixels at which images are augmented", at_least=1)


def main(config: FunnelPage) -> None:
    """Write a page with the dropped pairs of each stage, samples, and the pairs of training."""
    if Path(config.out).suffix != ".html":
        raise UserError(f"out={config.out}: the name must end in .html")
    fragments = [fragment for path in config.fragments for fragment in _read(path)]
    sources = list(dict.fromkeys(fragment.source for fragment in fragments))
    for key in ("shards", "captions"):
        if len(getattr(config, key)) not in (0, len(sources)):
            raise UserError(f"{key}={getattr(config, key)}: give one folder for each of {', '.join(sources)}")
    shards = dict(zip(sources, map(Path, config.shards), strict=False))
    captions = dict(zip(sources, map(Path, config.captions), strict=False))
    content = {
        "title": f"What was dropped, and why: {', '.join(sources)}",
        "style": style() + (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "chart": inline(plots.funnel([fragment.as_dict() for fragment in fragments]), "funnel"),
        "stages": [_stage(fragment, shards.get(fragment.source)) for fragment in fragments],
        "trained": [
            {"source": source, "pairs": list(_trained(shards[source], captions[source], config))}
            for source in sources
            if source in shards and source in captions
        ],
        "draws": DRAWS,
        "size": config.image_size,
    }
    with replacing(config.out) as part:
        part.write_text(rendered("funnel.html.j2", content), encoding="utf-8")
    say(f"{config.out}: {len(fragments)} stages of {', '.join(sources)}")


def _read(path: str) -> list[Fragment]:
    """Read a fragment, or all of a merged funnel."""
    try:
        stages = json.loads(Path(path).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError, TypeError):
        return [read_fragment(path)]
    names = {"in": "n_in", "out": "n_out"}
    return [Fragment(**{names.get(key, key): value for key, value in stage.items()}) for stage in stages]


# ---- the dropped pairs ----------------------------------------------------------------------------------


def _stage(fragment: Fragment, shards: Path | None) -> dict[str, Any]:
    """Return a stage for the page: its counts, and for each reason its samples as a table or as pictures."""
    notes = {**fragment.notes.get("examples", {}), **fragment.notes.get("samples", {})}
    stored = [sample for some in notes.values() for sample in some if _is_stored(sample)]
    pictures = _pictures(shards, stored) if shards else {}
    reasons = []
    for reason, count in fragment.as_dict()["dropped"].items():
        samples = notes.get(reason, [])
        reasons.append(
            {
                "title": reason.replace("_", " "),
                "count": f"{count:,} ({count / fragment.n_in:.1%})",
                "pictures": [
                    {"src": pictures[sample["shard"], sample["key"]], "texts": _texts(sample)}
                    for sample in samples
                    if _is_stored(sample) and (sample["shard"], sample["key"]) in pictures
                ],
                "html": render(_grid(samples, f"Samples of {reason}"), "html") if samples else None,
            }
        )
    share = f"{fragment.n_out:,} of {fragment.n_in:,} {fragment.unit} kept"
    title = f"{fragment.stage.replace('_', ' ').capitalize()}: {fragment.source}"
    return {"title": title, "kept": share, "reasons": reasons}


def _is_stored(sample: str | Mapping[str, Any]) -> bool:
    return isinstance(sample, dict) and "shard" in sample and "key" in sample


def _texts(sample: Mapping[str, Any]) -> list[str]:
    """Return the caption of a stored pair and its scores, as lines."""
    scores = {key: value for key, value in sample.items() if key not in ("caption", "shard", "key")}
    shown = [f"{key.replace('_', ' ')} {_text(value)}" for key, value in scores.items() if value is not None]
    return [sample["caption"] or "", " · ".join(shown)]


def _grid(samples: Sequence[str | Mapping[str, Any]], title: str) -> Grid:
    """Return samples as a table: a text a row, or a row for each of several fields."""
    rows = [sample if isinstance(sample, dict) else {"sample": sample} for sample in samples]
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [Line(str(number), [Shown(_text(row.get(key))) for key in heads]) for number, row in enumerate(rows, 1)]
    return Grid([Head(key.replace("_", " "), words=True) for key in heads], lines, title, corner="row", whole=True)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


# ---- pictures ------------------------------------------------------------------------------------------


def _pictures(shards: Path, wanted: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Return {(shard, key): picture as a data URI} of those pairs that the shards have."""
    keys: dict[str, set[str]] = defaultdict(set)
    for sample in wanted:
        keys[sample["shard"]].add(sample["key"])
    pictures = {}
    for shard, keys_of_shard in keys.items():
        for key, data in _images(shards / f"{shard}.tar", keys_of_shard):
            pictures[shard, key] = _embedded(read_rgb(io.BytesIO(data)))
    return pictures


def _images(tar: Path, keys: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield key and bytes of the images of a shard, here or in a bucket."""
    if is_there(tar):
        images = ((key.rpartition("/")[2], data) for key, data in shard_images(tar))
        yield from islice(((key, data) for key, data in images if key in keys), len(keys))


def _embedded(image: Image.Image) -> str:
    image.thumbnail((WIDEST, WIDEST))
    return webp(image)


def _trained(shards: Path, captions: Path, config: FunnelPage) -> Iterator[dict[str, Any]]:
    """Yield the first pairs of the first side-car with pairs: picture, draws of the training's transform, captions.

    Those with several captions come first.
    """
    rows: list[dict[str, Any]] = []
    for sidecar in sorted(captions.glob("*.parquet")):
        rows = read_sidecar(sidecar)
        if rows and is_there(shards / f"{sidecar.stem}.tar"):
            break
    else:
        return
    several = [row for row in rows if len(row["captions"]) > 1]
    chosen = (several if len(several) >= config.count else rows)[: config.count]
    texts = {row["key"]: row["captions"] for row in chosen}
    transform = TrainTransform(config.image_size, config)
    for key, data in _images(shards / f"{sidecar.stem}.tar", set(texts)):
        try:
            draws = [transform.pixels(data, random.Random(f"{key} {draw}")) for draw in range(DRAWS)]
        except UNDECODABLE:
            continue
        yield {
            "picture": _embedded(read_rgb(io.BytesIO(data))),
            "draws": [_embedded(Image.fromarray(pixels)) for pixels in draws],
            "captions": texts[key],
        }


if __name__ == "__main__":
    run_command(main, FunnelPage)
