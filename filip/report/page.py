"""The report of a study, one self-contained page: ``filip report page results=results/demo``.

Its first screen has a study's own sentences and a line for each model, and scenes as the models see them; below are the
paired differences of all headline columns in one plot. Tables, figures and the account of data and runs are folded, in
three groups. It reads what tables, trainings and evaluations have written, so drawing it again needs neither.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from filip import resources
from filip.cli.command import MISSING, option, run_command
from filip.common.files import replacing
from filip.common.progress import say
from filip.common.table_writer import Grid, render
from filip.report.findings import NOTE, findings
from filip.report.own_pictures import OwnPictures
from filip.report.plots import INK, LINE, MUTED, forest
from filip.report.results import Results
from filip.report.show import headline, lead
from filip.report.style import COLOURS, TEMPLATES, colours_of, style
from filip.report.summary import funnel_grid, search_grid, summary
from filip.report.table import short_commit
from filip.study import Study, load_study

WIDEST = 1400  # pixels of an embedded picture
THUMBNAIL = (256, 256)  # pixels of one of your own
SHEET = "eval/alignment.png"  # below the results: words on patches


@dataclass
class Page:
    results: str = option(MISSING, "results of a study, e.g. results/demo")
    study: str | None = option(None, "study config; null = RESULTS/study.json, which the results were made with")
    out: str | None = option(None, "the page; null = RESULTS/report.html", writes="file")


def main(config: Page) -> None:
    """Write the report of a study as one self-contained page."""
    study, results = load_study(config.study, config.results), Results(config.results)
    out = Path(config.out or results.folder / "report.html")
    content = _content(study, results)
    content["explorer"] = "explore.html" if out.with_name("explore.html").is_file() else None
    with replacing(out) as part:
        part.write_text(rendered("report.html.j2", content), encoding="utf-8")
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def rendered(template: str, content: Mapping[str, Any]) -> str:
    """Return a page as HTML, from one of the report's templates."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return resources.sealed(environment.get_template(template).render(content))


def _content(study: Study, results: Results) -> dict[str, Any]:
    tables = results.tables()
    whole = summary(study, results, tables)
    frame = findings(tables)
    scenes = results.scenes()
    sheet = []
    if (results.folder / SHEET).is_file():
        with Image.open(results.folder / SHEET) as image:
            src = webp(image.convert("RGB"), WIDEST, 4 * WIDEST)
        title = "Words on patches, as in the paper"
        sheet.append({"title": title, "alt": "The most similar word on each patch", "src": src})
    counted = Counter(note for table in tables.values() for note in table.notes)
    common = [note for note, times in counted.items() if times > 1]  # printed once, above the tables
    own = OwnPictures.of(study, results)
    return {
        "study": study.name,
        "title": study.title,
        "style": style() + (TEMPLATES / "report.css").read_text(encoding="utf-8"),
        "note": NOTE,
        "own": own
        and {
            "sentences": own.sentences(),
            "groups": [
                {**group, "pictures": [{**one, "image": webp(one["image"], *THUMBNAIL)} for one in group["pictures"]]}
                for group in own.shown()
            ],
            "next": own.next_commands(),
        },
        "lead": lead(study, tables) if tables and not own else [],
        "headline": _table(headline(tables, study.config.get("headline", []))) if tables else None,
        "evaluated": any(
            c.number for t in tables.values() for r in t.rows if r.kind != "paper" for c in r.cells.values()
        ),
        "forest": inline(forest(frame, colours_of(study)), "forest") if len(frame) else None,
        "scenes": scenes,
        "pictures": [] if scenes else sheet,
        "reading": " ".join(common),
        "tables": [
            {"title": table.title, "html": _table(table.grid([n for n in table.notes if n not in common]))}
            for table in tables.values()
        ],
        "figures": sheet if scenes else [],
        "facts": facts(study, results),
        "details": [
            {"title": "Data funnel, stage by stage", "html": _table(funnel_grid(whole["funnel"]))},
            *([{"title": "Search", "html": _table(search_grid(study, whole["search"]))}] if whole["search"] else []),
            {"title": "Study config", "text": json.dumps(study.config, indent=1, ensure_ascii=False)},
        ],
        "credits": _credits(study, results),
    }


def _table(grid: Grid) -> str:
    return render(grid, "html")


# ---- pictures ------------------------------------------------------------------------------------------


def webp(picture: Image.Image, width: int, height: int) -> str:
    """Return a picture of at most so many pixels as a data URI, as WebP."""
    picture.thumbnail((width, height))
    stored = io.BytesIO()
    picture.save(stored, format="WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode('ascii')}"


def inline(figure: Figure, name: str) -> str:
    """Return a figure as a part of a page: colours become the page's, so that they follow light and dark.

    name: prefix of its ids, which must not meet the ids of other figures.
    """
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", body)
    named = {INK: "ink", MUTED: "soft", LINE: "line", "#ffffff": "paper"}
    named |= {colour: f"run{number}" for number, colour in enumerate(COLOURS)}
    for colour, variable in named.items():
        body = body.replace(colour, f"var(--{variable})")
    return body


def _credits(study: Study, results: Results) -> list[dict[str, Any]]:
    files = [folder / "attribution.json" for folder in (results.folder / "corpus", Path(study.corpus))]
    text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "{}")
    keys = ("title", "author", "homepage", "license", "license_url", "role", "images", "package", "changes")
    entries = [(name, entry) for name, entry in json.loads(text).items() if isinstance(entry, dict)]
    return [{**dict.fromkeys(keys, ""), "title": name, **entry} for name, entry in entries]


# ---- where the results come from -------------------------------------------------------------------------


def facts(study: Study, results: Results) -> list[tuple[str, str]]:
    """Return where the trainings come from and when they ran: (name, value) pairs for print."""
    trained = [training for run in study.trained if (training := results.training(run))]
    starts = [start for run in study.trained if (start := _last_start(results, run))]
    begun, ended = (
        sorted(str(training[key])[:16].replace("T", " ") for training in trained if training.get(key))
        for key in ("started", "finished")
    )
    versions = [(start.get("versions") or {}).items() for start in starts]
    ran = [(start.get("world_size"), str(start.get("machine") or "")) for start in starts]
    hashes = [(training.get("manifest_hashes") or {}).items() for training in trained]
    rows = {
        "commit": [short_commit(str(training.get("commit") or "")) for training in trained],
        "trained": [f"{begun[0]} to {ended[-1]} (UTC)"] if begun and ended else [],
        "versions": [", ".join(f"{name} {version}" for name, version in pairs) for pairs in versions],
        "machine": [", ".join(filter(None, [f"{n} rank{'s' * (n > 1)}" if n else "", at])) for n, at in ran],
        "data": [", ".join(f"{name} (manifest {str(value)[:12]})" for name, value in pairs) for pairs in hashes],
        "results": [str(results.folder)],
    }
    return [(name, "; ".join(dict.fromkeys(filter(None, values)))) for name, values in rows.items() if any(values)]


def _last_start(results: Results, run: str) -> dict[str, Any] | None:
    folder = results.run_dir(run)
    file = folder / "starts.jsonl" if folder else None
    lines = file.read_text(encoding="utf-8").splitlines() if file and file.is_file() else []
    try:
        return json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:  # cut short by a kill
        return None


if __name__ == "__main__":
    run_command(main, Page)
