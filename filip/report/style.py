"""Set the look of the report: one colour per model, and the frame of a page."""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filip import resources

if TYPE_CHECKING:
    from filip.study import Study  # reads a schema, which a page of hits needs not

TEMPLATES = Path(__file__).resolve().parent / "templates"

# The colours of templates/style.css (--run0, --run1, …), where each also has a variant for dark pages.
COLOURS = ["#c2562c", "#1f63b5", "#23857a", "#a3720b", "#7a56a8", "#56606f", "#5d7f2f", "#a8466a"]


def colours_of(study: Study) -> dict[str, str]:
    """Return the colour of every run, fine-tuning and peer of a study, by name.

    Runs are coloured in their order, the replicas and the fine-tunings of a run as the run.
    """
    replicas = {member: run for run in study.runs for member in study.replicas(run)[1:]}
    trained = [run for run in study.runs if run not in replicas]
    numbers = {run: number for number, run in enumerate([*trained, *study.peers])}
    numbers |= {member: numbers[run] for member, run in replicas.items()}
    numbers |= {name: numbers[tune["from"]] for name, tune in study.fine_tunes.items()}
    return {name: COLOURS[number % len(COLOURS)] for name, number in numbers.items()}


@cache
def style() -> str:
    """Return the style sheet of the report and of pages of single tables."""
    return resources.page_style() + (TEMPLATES / "style.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """Return a whole HTML document, self-contained and without a script. body is HTML already, title is not."""
    safe = html.escape(title)
    return resources.sealed(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{safe}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style()}</style></head>\n<body><h1>{safe}</h1>\n{body}\n</body></html>\n"
    )
