"""The figure and the table of each page that answers one question, from its study's record alone.

    python -m bench.answers              # docs/maximum.md, muon.md, quarter.md, lead.md and their pictures
    python -m bench.answers only=[lead]

A row is the mean over its trainings; ± is half the 95 % interval over them, by Student's t. R@1 is the mean of both
directions.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from bench.readme import put_on_page
from filip.command import option, run_command
from filip.report import plots
from filip.table_writer import Grid, Head, Line, Shown, render

FORMS = {  # of the study maximum, in the order of its table: what a row of so many patches or tokens is called
    "hard": "the maximum",
    "hard_slow": "the maximum at half the rate",
    "t-0.02": "log-mean-exp, t = 0.02",
    "smooth": "log-mean-exp, t = 0.05",
    "t-0.1": "log-mean-exp, t = 0.1",
    "t-0.2": "log-mean-exp, t = 0.2",
    "sum": "log-sum-exp, t = 0.05",
    "softmax": "weighted by a softmax, t = 0.05",
    "top_2": "mean of the two largest",
    "annealed": "log-mean-exp, t from 0.1 to 0",
    "hard_muon": "the maximum, Muon",
    "smooth_muon": "log-mean-exp, t = 0.05, Muon",
    "annealed_muon": "log-mean-exp, t from 0.1 to 0, Muon",
}
MODELS = {"query": "CLIP, one query", "heads": "CLIP, 16 heads", "filip": "FILIP", "smooth": "FILIP, smooth"}
COLOURS = dict(zip(MODELS, ("#b4603f", "#b88a1e", "#2f6690", "#3a8f62"), strict=True))


@dataclass
class Answers:
    records: str = option("records", "folder of the records")
    docs: str = option("docs", "folder of the pages; pictures go to its images/")
    only: list[str] = option([], "studies; [] = all")


class Record:
    """The trainings of a study, by row and seed."""

    def __init__(self, path: Path) -> None:
        self.runs: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["runs"]

    def __contains__(self, row: str) -> bool:
        return row in self.runs

    def seeds(self, row: str) -> dict[str, Mapping[str, Any]]:
        """Return {what is added to the row's name: training}."""
        named = [name for name in sorted(self.runs) if re.fullmatch(rf"{re.escape(row)}(_s\d+)?", name)]
        return {name.removeprefix(row): self.runs[name] for name in named}

    def found(self, row: str, *endings: str) -> np.ndarray:
        """Return [trainings], in percent: the mean over what was found under keys with these endings."""
        values = [[v for k, v in run["found"].items() if k.endswith(endings)] for run in self.seeds(row).values()]
        return 100 * np.array([fmean(each) for each in values])

    def recall(self, row: str) -> np.ndarray:
        return self.found(row, "_new_i2t_r1", "_new_t2i_r1")

    def exchange(self, row: str) -> np.ndarray:
        return self.found(row, "exchange_mean")

    def less(self, row: str, base: str) -> np.ndarray:
        """Return R@1 of a row less that of another, seed by seed."""
        ours, theirs = (dict(zip(self.seeds(each), self.recall(each), strict=True)) for each in (row, base))
        return np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])

    def seconds(self, row: str) -> float:
        """Return the least processor seconds of its trainings: other work on the machine can only add to them."""
        return min(run["processor_seconds"] for run in self.seeds(row).values())


def main(config: Answers) -> None:
    """Draw the figures and write the tables."""
    for study in config.only or ANSWERS:
        record, docs = Record(Path(config.records) / f"{study}.json"), Path(config.docs)
        page, figure, table = ANSWERS[study]
        figure(record).savefig(docs / "images" / f"{study}.svg", format="svg", metadata={"Date": None})
        put_on_page(docs / page, table(record), marks(study))


def marks(study: str) -> tuple[str, str]:
    return f"<!-- {study}:begin -->", f"<!-- {study}:end -->"


def with_interval(values: np.ndarray, signed: bool = False) -> str:
    """Return e.g. ``61.2 ±3.4``; without ± for one training."""
    mean = f"{values.mean():{'+' if signed else ''}.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ±{stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)):.1f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [Line(label, [Shown(cell) for cell in cells]) for label, *cells in rows]
    return render(Grid([Head(title) for title in head[1:]], lines, corner=head[0], whole=True), "markdown").rstrip()


# ---- which maximum -----------------------------------------------------------------------------------------


def maximum_row(form: str, count: int) -> str:
    name, _, value = form.partition("-")
    name, _, how = name.partition("_") if name.endswith(("_muon", "_slow")) else (name, "", "")
    return f"{name}_{count}" + (f"_{how}" if how else "") + (f"-{value}" if value else "")


def numbers(record: Record) -> list[int]:
    """Return the numbers of patches, or of tokens of a text, that the rows were trained with."""
    return sorted(int(row.removeprefix("hard_")) for row in record.runs if re.fullmatch(r"hard_\d+", row))


def trained_forms(record: Record) -> dict[str, str]:
    counts = numbers(record)
    return {form: title for form, title in FORMS.items() if any(maximum_row(form, n) in record for n in counts)}


def maximum_figure(record: Record, what: str = "patches") -> Figure:
    counts, forms = numbers(record), trained_forms(record)
    figure, axes = plots.grid(1, len(counts), 10, 0.9 + 0.23 * len(forms))
    for axis, count in zip(axes, counts, strict=True):
        for place, form in enumerate(reversed(forms)):
            if (row := maximum_row(form, count)) in record:
                dots(axis, place, record.recall(row), COLOURS["query" if form.startswith("hard") else "filip"])
        axis.set_yticks(range(len(forms)), list(reversed(forms.values())) if count == counts[0] else [""] * len(forms))
        axis.set_ylim(-0.5, len(forms) - 0.5)
        axis.set_xlim(0, 100)
        axis.grid(True, axis="y")
        axis.set_title(f"{count} {what}")
    axes[1].set_xlabel("R@1 of 1,000 new scenes, %")
    return figure


def dots(axis: Axes, place: float, values: np.ndarray, colour: str) -> None:
    """Draw each training as a ring and the mean as a dot."""
    axis.plot(values, [place] * len(values), "o", color=colour, markersize=4, fillstyle="none", alpha=0.6)
    axis.plot(values.mean(), place, "o", color=colour, markersize=6)


def maximum_table(record: Record, what: str = "patches") -> str:
    rows, counts = [], numbers(record)
    for form, title in trained_forms(record).items():
        cells = []
        for count in counts:
            row, hard = maximum_row(form, count), maximum_row("hard" + "_muon" * form.endswith("_muon"), count)
            if row not in record:
                cells += ["", ""]
                continue
            less = "" if row == hard else with_interval(record.less(row, hard), signed=True)
            cells += [f"{record.recall(row).mean():.1f} ({len(record.seeds(row))})", less]
        rows.append([title, *cells])
    head = [text for count in counts for text in (f"{count} {what}: R@1 (trainings)", "less the maximum")]
    return markdown(["in training", *head], rows)


# ---- which optimiser ---------------------------------------------------------------------------------------

OF_MUON = {"query": "clip", "heads": "heads", "filip": "filip", "smooth": "smooth"}  # the rows of its study


def muon_figure(record: Record) -> Figure:
    figure, (axis,) = plots.grid(1, 1, 6.5, 2.6)
    for place, (model, row) in enumerate(reversed(OF_MUON.items())):
        before, after = record.recall(row), record.recall(f"{row}_muon")
        axis.annotate("", (after.mean(), place), (before.mean(), place), arrowprops={"arrowstyle": "->"})
        dots(axis, place, before, plots.MUTED)
        dots(axis, place, after, COLOURS[model])
    axis.set_yticks(range(len(OF_MUON)), [MODELS[model] for model in reversed(OF_MUON)])
    axis.set_xlabel("R@1 of 1,000 new scenes, %: AdamW (grey) and Muon")
    return figure


def muon_table(record: Record) -> str:
    rows = []
    for model, row in OF_MUON.items():
        pairs = [[record.found(name, key) for name in (row, f"{row}_muon")] for key in ("exchange_mean", "_pointing")]
        rates = [f"{record.runs[name]['config']['optimizer']['base_lr']:g}" for name in (row, f"{row}_muon")]
        recall = [" / ".join(f"{record.found(name, f'_{way}_r1').mean():.1f}" for way in ("i2t", "t2i"))
                  for name in (row, f"{row}_muon")]  # fmt: skip
        gain = with_interval(record.less(f"{row}_muon", row), signed=True)
        shown = [" → ".join(f"{values.mean():.1f}" for values in pair) for pair in pairs]
        rows.append([MODELS[model], *recall, gain, *shown, " → ".join(rates)])
    head = ["R@1, AdamW", "R@1, Muon", "gain, mean of both", "exchange rejected", "word points right", "rate"]
    return markdown(["", *head], rows)


def warm_start_table(record: Record) -> str:
    rows = []
    for row, label in labelled(record).items():
        searched = record.found(row, "_search_i2t_r1", "_search_t2i_r1").mean()
        rows.append([label, f"{searched:.1f}", with_interval(record.recall(row))])
    return markdown(["", "search scenes", "new scenes"], rows)


# ---- a quarter of the tokens -------------------------------------------------------------------------------


def labelled(record: Record) -> dict[str, str]:
    return {row: record.runs[row]["label"] for row in record.runs if not re.search(r"_s\d+$", row)}


def labelled_figure(record: Record, of: str) -> Figure:
    rows = labelled(record)
    figure, (axis,) = plots.grid(1, 1, 9, 0.9 + 0.28 * len(rows))
    for place, row in enumerate(reversed(rows)):
        dots(axis, place, record.recall(row), COLOURS["query" if row.startswith("all") else "filip"])
    axis.set_yticks(range(len(rows)), list(reversed(rows.values())))
    axis.set_xlabel(f"R@1 of {of}")
    return figure


def quarter_table(record: Record) -> str:
    rows = []
    for row, label in labelled(record).items():
        full = re.sub(r"^[a-z]+", "all", row)  # with as many pairs
        ways = [f"{record.found(row, f'_{way}_r1').mean():.1f}" for way in ("i2t", "t2i")]
        facts = [f"{record.runs[row]['config']['optimizer']['base_lr']:g}", str(len(record.seeds(row)))]
        less = "" if row == full else with_interval(record.less(row, full), signed=True)
        rows.append([label, *ways, *facts, less])
    head = ["image → text", "text → image", "base_lr", "trainings", "less all tokens, mean of both"]
    return markdown(["in training", *head], rows)


# ---- the price of the lead ---------------------------------------------------------------------------------

WIDTHS, STEPS, SECONDS = (32, 64, 128, 256), (150, 300, 600, 1200), (5, 10, 20, 50, 100)


def lengths(record: Record, model: str, width: int) -> list[str]:
    """Return the rows of a model and width, by length."""
    names = [f"{model}_{width}" + ("" if steps == 300 else f"_{steps}") for steps in STEPS]
    return [name for name in names if name in record]


def seconds_to(seconds: Sequence[float], found: Sequence[float], goal: float) -> str:
    """Return a training's processor seconds to a goal, between two lengths in proportion; a bound outside of them."""
    if found[0] >= goal:
        return f"< {seconds[0]:.0f}"
    for (before, low), (after, high) in itertools.pairwise(zip(seconds, found, strict=True)):
        if high >= goal:
            return f"{before + (goal - low) / (high - low) * (after - before):.0f}"
    return f"> {seconds[-1]:.0f}"


def seconds_by_seed(record: Record, rows: Sequence[str], found: Callable[[str], np.ndarray], goal: float) -> str:
    """Return the seconds of each seed; the first one's bound if none comes between its lengths."""
    values = [dict(zip(record.seeds(row), found(row), strict=True)) for row in rows]
    each = []
    for seed in values[0]:
        seconds = [record.seconds(row) for row, by_seed in zip(rows, values, strict=True) if seed in by_seed]
        each.append(seconds_to(seconds, [by_seed[seed] for by_seed in values if seed in by_seed], goal))
    return each[0] if {text[0] for text in each} in ({"<"}, {">"}) else ", ".join(each)


def lead_figure(record: Record) -> Figure:
    figure, axes = plots.grid(2, len(WIDTHS), 12, 5.6)
    for column, width in enumerate(WIDTHS):
        for model, title in MODELS.items():
            rows = lengths(record, model, width)
            seconds = [record.seconds(row) for row in rows]
            for axis, found in ((axes[column], record.recall), (axes[len(WIDTHS) + column], record.exchange)):
                axis.plot(seconds, [np.mean(found(row)) for row in rows], "o-", color=COLOURS[model], label=title)
        axes[column].set_title(f"{width} wide")
        for axis, goal, lowest in ((axes[column], 50, -2), (axes[len(WIDTHS) + column], 90, 45)):
            axis.set_ylim(lowest, 102)
            axis.set_xscale("log")
            axis.set_xticks(SECONDS, map(str, SECONDS))
            axis.minorticks_off()
            axis.axhline(goal, color=plots.LINE)
        axes[len(WIDTHS) + column].set_xlabel("processor seconds of a training")
    axes[0].set_ylabel("R@1 of 1,000 new scenes, %")
    axes[len(WIDTHS)].set_ylabel("exchanged colours rejected, %")
    axes[-1].legend(loc="center left", fontsize=8)
    return figure


def lead_table(record: Record) -> str:
    rows = []
    for width in WIDTHS:
        for model, title in MODELS.items():
            trained = lengths(record, model, width)
            goals = [(record.recall, 50.0), (record.recall, 70.0), (record.exchange, 90.0)]
            times = [seconds_by_seed(record, trained, found, goal) for found, goal in goals]
            by_steps = {record.runs[row]["steps"]: record.recall(row).mean() for row in trained}
            shown = [f"{by_steps[steps]:.1f}" if steps in by_steps else "" for steps in STEPS]
            rows.append([f"{title}, {width} wide", *shown, f"{by_steps[600] - by_steps[300]:+.1f}", *times])
    head = [*(f"{steps:,} steps" for steps in STEPS), "gain from 300 to 600"]
    head += ["s to 50 %", "s to 70 %", "s to 90 % of exchanges"]
    return markdown(["R@1", *head], rows)


ANSWERS: dict[str, tuple[str, Callable[[Record], Figure], Callable[[Record], str]]] = {  # page, figure, table
    "maximum": ("maximum.md", maximum_figure, maximum_table),
    "texts": ("maximum.md", partial(maximum_figure, what="tokens"), partial(maximum_table, what="tokens")),
    "muon": ("muon.md", muon_figure, muon_table),
    "warm_start": ("muon.md", partial(labelled_figure, of="1,000 new scenes, %"), warm_start_table),
    "quarter": ("quarter.md", partial(labelled_figure, of="500 new pictures, % (chance 0.2)"), quarter_table),
    "lead": ("lead.md", lead_figure, lead_table),
}


if __name__ == "__main__":
    run_command(main, Answers)
