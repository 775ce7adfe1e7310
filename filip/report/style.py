"""Set the look of the report: one colour per model in every figure and on the page, and the frame of a page."""

from __future__ import annotations

import html
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filip import resources

if TYPE_CHECKING:
    from filip.study import Study  # reads a schema, which a page of hits needs not

TEMPLATES = Path(__file__).resolve().parent / "templates"

# The colours of templates/style.css (--run0, --run1, …), where each also has a variant for dark pages.
COLOURS = ["#c2562c", "#1f63b5", "#23857a", "#a3720b", "#7a56a8", "#56606f", "#5d7f2f", "#a8466a"]


@dataclass(frozen=True)
class Look:
    """The look of a run. tuned: a fine-tuning, in the colour of the run that it starts from, dashed."""

    number: int = 5
    tuned: bool = False

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    @property
    def line(self) -> str:
        return "--" if self.tuned else "-"


def looks(study: Study) -> dict[str, Look]:
    """Return the look of every run, fine-tuning, peer and efficiency row of a study, by name.

    Runs are coloured in their order, the replicas of a run as the run; an efficiency row as the run of its
    accuracy, or else as the first run with its interaction.
    """
    replicas = {member: run for run in study.runs for member in study.replicas(run)[1:]}
    trained = [run for run in study.runs if run not in replicas]
    by_run = {run: Look(number) for number, run in enumerate(trained)}
    by_run |= {member: by_run[run] for member, run in replicas.items()}
    by_run |= {name: Look(by_run[tune["from"]].number, True) for name, tune in study.fine_tunes.items()}
    by_run |= {peer: Look(len(trained) + number) for number, peer in enumerate(study.peers)}
    by_interaction: dict[bool, Look] = {}
    for run in trained:
        by_interaction.setdefault(_pooled(study.runs[run]), by_run[run])
    for name, row in study.efficiency.items():
        by_run[name] = by_run.get(row.get("accuracy_of") or "") or by_interaction.get(_pooled(row), Look())
    return by_run


def _pooled(entry: dict[str, object]) -> bool:
    return "model.interaction=pooled" in (entry.get("overrides") or [])  # type: ignore[operator]


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
