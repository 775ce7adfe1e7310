"""The report of a study, one self-contained page: ``filip report page results=results/demo``.

Its first screen shows what the study has found: the paired differences of all headline columns in one plot, and three
scenes as the models see them. Their numbers, tables, figures, funnel and provenance are folded. It reads what tables,
figures and evaluations have written, so drawing it again needs no training and no evaluation.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from filip.command import MISSING, option, run_command
from filip.files import replacing
from filip.progress import say
from filip.report.findings import NOTE, cost, findings, findings_grid
from filip.report.plots import DROPPED, INK, KEPT, LINE, MUTED, stage_bars
from filip.report.provenance import duration, facts, stage_groups
from filip.report.results import Results
from filip.report.style import COLOURS, TEMPLATES, looks, style
from filip.report.summary import funnel_grid, runs_grid, stages_grid, summary
from filip.report.table import Table
from filip.report.table_plots import forest
from filip.study import Study, load_study
from filip.table_writer import Grid, render

LARGEST = 3_000_000  # bytes of all embedded pictures together
WIDEST = 1400  # pixels of an embedded picture
FIGURES = {
    "loss_curves": "Training curves",
    "component_ablation": "Component ablation, as a figure",
    "zero_shot": "Zero-shot accuracy by benchmark",
    "recall": "Recall at k",
    "efficiency": "Time, memory and accuracy of the loss",
    "confusion": "Most frequent mistakes",
    "funnel": "Data funnel",
}
SHEETS = (  # below the results: place, title, text for those who do not see it
    (
        "eval/alignment_compared.png",
        "Words on patches, as in the paper",
        "The most similar word on each patch",
    ),
    ("figures/augmentation.png", "What training sees", "Images of the training set, augmented"),
)


@dataclass
class Page:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(
        None, "study config; null = RESULTS/study.json, which the results were made with"
    )
    out: str | None = option(None, "the page; null = RESULTS/report.html", writes="file")
    figures: str | None = option(None, "folder of the figures; null = RESULTS/figures")
    explorer: str | None = option(
        None, "page that the report links to; null = explore.html next to it, if it is there"
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
    """Return the address of the explorer as seen from the page."""
    place = Path(explorer) if explorer else out.with_name("explore.html")
    if explorer is None and not place.is_file():
        return None
    return Path(os.path.relpath(place, out.parent)).as_posix()


def _content(study: Study, results: Results, figures: Path) -> dict[str, Any]:
    tables = results.tables()
    whole = summary(study, results, tables)
    found = findings(tables)
    room = _Room(LARGEST)
    scenes = results.scenes()
    if scenes:
        room.left -= len(json.dumps(scenes))
    common = _common_notes(tables)
    groups = stage_groups(whole["stages"])
    compared = found["difference"].notna().any()
    numbers = findings_grid(found, cost(study, whole["runs"], found))
    return {
        "study": study.name,
        "title": study.title,
        "style": style() + (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "note": NOTE,
        "findings": {"title": "Each finding in numbers", "html": _table(numbers)} if len(found) else None,
        "forest": _inline(forest(found, looks(study)), "forest") if compared else None,
        "scenes": scenes,
        "pictures": [] if scenes else list(_pictures(SHEETS[:1], results, figures, room)),
        "reading": " ".join(common),
        "folds": [
            *(
                {
                    "title": table.title,
                    "html": _table(table.grid([n for n in table.notes if n not in common])),
                }
                for table in tables.values()
            ),
            *(
                {"title": title, "svg": inline_svg(file.read_text(encoding="utf-8"), file.stem)}
                for name, title in FIGURES.items()
                if (file := figures / f"{name}.svg").is_file()
            ),
            {"title": "Data funnel, stage by stage", "html": _table(funnel_grid(whole["funnel"]))},
            *_pictures(SHEETS if scenes else SHEETS[1:], results, figures, room),
        ],
        "time": f"{duration(sum(whole['stages'].values()))} of work" if groups else None,
        "stages": _inline(stage_bars(groups), "stages") if groups else None,
        "facts": facts(study, results),
        "details": [
            {"title": "Time of each stage", "html": _table(stages_grid(whole["stages"]))},
            {"title": "Runs", "html": _table(runs_grid(whole["runs"]))},
            {"title": "Study config", "text": json.dumps(study.config, indent=1, ensure_ascii=False)},
        ],
        "credits": _credits(results),
    }


def _table(grid: Grid) -> str:
    return render(grid, "html")


def _common_notes(tables: Mapping[str, Table]) -> list[str]:
    """Return the notes that several tables share; they are said once, above the tables."""
    counted = Counter(note for table in tables.values() for note in table.notes)
    return [note for note, times in counted.items() if times > 1]


# ---- pictures ------------------------------------------------------------------------------------------


@dataclass
class _Room:
    """The bytes that are left for embedded pictures."""

    left: int

    def embed(self, file: Path) -> str | None:
        """Return a picture as a data URI, as WebP; None if no room is left for it."""
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


def _pictures(
    wanted: tuple[tuple[str, str, str], ...], results: Results, figures: Path, room: _Room
) -> Iterator[dict[str, Any]]:
    """Yield the pictures that are there, with their data or, where they are too large, with their path."""
    for place, title, alt in wanted:
        file = figures / place.partition("/")[2] if place.startswith("figures/") else results.folder / place
        if file.is_file():
            path = os.path.relpath(file, results.folder)
            yield {"title": title, "alt": alt, "src": room.embed(file), "path": path}


def _inline(figure: Figure, name: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return inline_svg(text.getvalue(), name)


def inline_svg(text: str, name: str) -> str:
    """Make a figure of matplotlib a part of a page: colours become the page's, so that they follow light and dark.

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


def _credits(results: Results) -> list[dict[str, Any]]:
    file = results.folder / "corpus" / "attribution.json"
    text = file.read_text(encoding="utf-8") if file.is_file() else "{}"
    keys = ("title", "author", "homepage", "license", "license_url", "role", "images", "package", "changes")
    entries = [(name, entry) for name, entry in json.loads(text).items() if isinstance(entry, dict)]
    return [{**dict.fromkeys(keys, ""), "title": name, **entry} for name, entry in entries]


if __name__ == "__main__":
    run_command(main, Page)
