"""The report of a study, one self-contained page: ``filip report page results=results/demo``.

Its first screen says what the study has found: a verdict in words, made from the paired differences; four tiles; all
differences in one plot; three scenes as the models see them. Tables, figures, funnel and provenance are folded below.
It reads what tables, figures and evaluations have written, so drawing it again needs no training and no evaluation.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.files import replacing
from filip.progress import say
from filip.report.findings import Compared, Tables, comparisons, findings, tally, verdict
from filip.report.formats.html import TEMPLATES, style, table_html
from filip.report.formats.text import short_commit
from filip.report.looks import COLOURS, Look, looks
from filip.report.plots import DROPPED, INK, KEPT, LINE, MUTED
from filip.report.provenance import facts, stage_groups
from filip.report.results import Results
from filip.report.summary import summary
from filip.report.svg import duration, forest, stage_bar
from filip.report.tiles import cost, tiles
from filip.study import Study, load_study

LARGEST = 3_000_000  # bytes of all embedded pictures together
WIDEST = 1400  # pixels of an embedded picture
FIGURES = {
    "loss_curves": "Training curves",
    "component_ablation": "Component ablation, as a figure",
    "zero_shot": "Zero-shot accuracy by benchmark",
    "recall": "Recall at k",
    "efficiency": "Time, memory and accuracy of the loss",
    "confusion": "Most frequent mistakes",
}


@dataclass
class Page:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(
        None, "study config; null = RESULTS/study.json, which the results were made with"
    )
    out: str | None = option(None, "the page; null = RESULTS/report.html", writes="file")
    figures: str | None = option(None, "folder of the figures; null = RESULTS/figures")
    explorer: str | None = option(
        None, "page that the report links to; null = explore.html beside it, if it is there"
    )


def main(config: Page) -> None:
    """Write the report of a study as one self-contained page."""
    study, results = load_study(config.study, config.results), Results(config.results)
    out = Path(config.out or results.folder / "report.html")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = _content(study, results, Path(config.figures or results.folder / "figures"))
    content["explorer"] = _link(config.explorer, out)
    with replacing(out) as part:
        part.write_text(environment.get_template("report.html.j2").render(content), encoding="utf-8")
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _link(explorer: str | None, out: Path) -> str | None:
    """The address of the explorer as seen from the page."""
    place = Path(explorer) if explorer else out.with_name("explore.html")
    if explorer is None and not place.is_file():
        return None
    return Path(os.path.relpath(place, out.parent)).as_posix()


def _content(study: Study, results: Results, figures: Path) -> dict[str, Any]:
    tables = results.tables()
    whole = summary(study, results, tables)
    found, compared = findings(tables), comparisons(tables)
    look = looks(study)
    cost_tile, ratio = cost(study, results, tables, found, look)
    room = _Room(LARGEST)
    scenes = results.scenes()
    if scenes:
        room.left -= len(json.dumps(scenes))
    common = _common_notes(tables)
    return {
        "study": study.name,
        "title": study.title,
        "style": style() + (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "verdict": verdict(found, ratio),
        "tally": _tally_sentence(compared),
        "tiles": tiles(found, cost_tile, look),
        "forest": forest(compared, look) + forest(compared, look, narrow=True) if compared else None,
        "forest_note": _forest_note(compared),
        "keys": _keys(compared, look),
        "scenes": scenes,
        "pictures": [] if scenes else _sheets(results, room),
        "reading": " ".join(common),
        "tables": [
            {
                "title": table.title,
                "count": f"{sum(row.kind != 'paper' for row in table.rows)} rows",
                "html": table_html(table, [n for n in table.notes if n not in common]),
            }
            for table in tables.values()
        ],
        "figures": [
            {"title": title, "svg": inline_svg(text, name)}
            for name, title in FIGURES.items()
            if (text := _read(figures / f"{name}.svg"))
        ],
        "funnel": whole["funnel"],
        "funnel_count": f"{len(whole['funnel'])} stages",
        "funnel_svg": inline_svg(text, "funnel") if (text := _read(figures / "funnel.svg")) else None,
        "folded": _folded(results, figures, room),
        "stages": _stages(whole["stages"]),
        "facts": facts(study, results),
        "runs": [_run(name, run) for name, run in whole["runs"].items()],
        "config": json.dumps(study.config, indent=1, ensure_ascii=False),
        "credits": _credits(results),
    }


def _tally_sentence(compared: Sequence[Compared]) -> str:
    if not compared:
        return ""
    better, worse, rest = tally(list(compared))
    pairs = list(dict.fromkeys((c.row.label, c.base.label) for c in compared))
    ours, base = pairs[0] if len(pairs) == 1 else ("a row", "the first of its table")
    return (
        f"Of {len(compared)} paired comparisons {better} are in favour of {ours}, {worse} of {base}, "
        f"and in {rest} no difference holds."
    )


def _forest_note(compared: Sequence[Compared]) -> str:
    pairs = list(dict.fromkeys((c.row.label, c.base.label) for c in compared))
    who = (
        f"{pairs[0][0]} is ahead of {pairs[0][1]}"
        if len(pairs) == 1
        else "the first run is ahead of the second"
    )
    return (
        f"Points of accuracy or recall by which {who} (right) or behind (left), with 95 % intervals paired over the "
        "same images. A difference holds if p < 0.05 after Holm’s correction over the columns of its table."
    )


def _keys(compared: Sequence[Compared], look: Mapping[str, Look]) -> list[dict[str, Any]]:
    """What the colours of the plot mean: who is ahead, where a difference holds."""
    ahead = [c.row if c.less.effect > 0 else c.base for c in compared if c.less.holds]
    runs = {row.run: row.label for row in ahead if row.run}
    named = [(look.get(run, Look()).number, label) for run, label in runs.items()]
    keys = [{"colour": f"run{n}", "label": f"{label} is ahead", "open": False} for n, label in sorted(named)]
    return [*keys, {"colour": "muted", "label": "no difference that holds", "open": True}]


def _common_notes(tables: Tables) -> list[str]:
    """Notes that several tables have: said once, above them."""
    counted = Counter(note for table in tables.values() for note in table.notes)
    return [note for note, times in counted.items() if times > 1]


# ---- pictures ------------------------------------------------------------------------------------------


@dataclass
class _Room:
    """Bytes that are left for embedded pictures."""

    left: int

    def embed(self, file: Path) -> str | None:
        """A picture as a data URI, as WebP; None if there is no room for it."""
        stored = io.BytesIO()
        with Image.open(file) as image:
            picture = image.convert("RGB")
        picture.thumbnail((WIDEST, 4 * WIDEST))
        picture.save(stored, format="WEBP", quality=80)
        text = base64.b64encode(stored.getvalue()).decode("ascii")
        if len(text) > self.left:
            return None
        self.left -= len(text)
        return f"data:image/webp;base64,{text}"


def _sheets(results: Results, room: _Room) -> list[dict[str, Any]]:
    """For studies without scenes: the sheet of alignment pictures."""
    file = results.folder / "eval" / "alignment_compared.png"
    if not file.is_file() or (source := room.embed(file)) is None:
        return []
    return [{"src": source, "alt": "The index of the most similar word on each patch, model beside model"}]


def _folded(results: Results, figures: Path, room: _Room) -> list[dict[str, Any]]:
    wanted = [(figures / "augmentation.png", "What training sees", "Images of the training set, augmented")]
    sheet = results.folder / "eval" / "alignment_compared.png"
    if results.scenes():
        wanted.append(
            (sheet, "Words on patches, as in the paper", "The index of the most similar word on each patch")
        )
    return [
        {"title": title, "alt": alt, "src": room.embed(file), "path": os.path.relpath(file, results.folder)}
        for file, title, alt in wanted
        if file.is_file()
    ]


def inline_svg(text: str, name: str) -> str:
    """A figure of matplotlib as part of a page: colours become the page's, so that they follow light and dark.

    name: prefix of its ids, which must not meet those of other figures.
    """
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", body)
    named = {INK: "ink", MUTED: "muted", LINE: "line", KEPT: "kept", DROPPED: "dropped", "#ffffff": "paper"}
    named |= {colour: f"run{number}" for number, colour in enumerate(COLOURS)}
    for colour, variable in named.items():
        body = body.replace(colour, f"var(--{variable})")
    return body


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


# ---- provenance ----------------------------------------------------------------------------------------


def _stages(seconds: Mapping[str, float]) -> dict[str, Any] | None:
    groups = stage_groups(seconds)
    if not groups:
        return None
    legend = []
    for kind, name in (("data", "Data"), ("train", "Training"), ("eval", "Evaluation"), ("report", "Report")):
        members = sorted(((s, n) for k, n, s in groups if k == kind), reverse=True)
        if members:
            listed = ", ".join(f"{n} {duration(s)}" for s, n in members)
            legend.append((kind, f"{name} {duration(sum(s for s, _ in members))}", f"({listed})"))
    return {
        "total": duration(sum(seconds.values())),
        "bar": stage_bar(groups),
        "legend": legend,
    }


def _run(name: str, run: Mapping[str, Any]) -> dict[str, Any]:
    if not run["trained"]:
        return {
            "label": run["label"],
            "id": name,
            "numbers": ["–"] * 5,
            "precision": "–",
            "commit": "not run",
        }
    formats = {"steps": ",.0f", "global_batch": ",.0f", "samples_per_second": ",.0f"}
    formats |= {"seconds_per_iteration": ".3g", "peak_memory_mb": ",.0f"}
    numbers = ["–" if run[key] is None else format(run[key], how) for key, how in formats.items()]
    return {
        "label": run["label"],
        "id": run["run_id"] or name,
        "numbers": numbers,
        "precision": run["precision"] or "–",
        "commit": short_commit(run["commit"] or "–"),
    }


def _credits(results: Results) -> list[dict[str, Any]]:
    text = _read(results.folder / "corpus" / "attribution.json")
    keys = ("title", "author", "homepage", "license", "license_url", "role", "images", "package", "changes")
    entries = [(name, entry) for name, entry in json.loads(text or "{}").items() if isinstance(entry, dict)]
    return [{**dict.fromkeys(keys, ""), "title": name, **entry} for name, entry in entries]


if __name__ == "__main__":
    run_command(main, Page)
