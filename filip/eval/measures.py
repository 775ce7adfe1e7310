"""Put the numbers of evaluations into one table, whichever command wrote them.

Lines are benchmarks and their measures, columns are models; a cell is a percentage with its 95 % interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from filip.common.table_writer import Grid, Head, Line, Shown, differing, render
from filip.eval.protocols import protocol_of, shown
from filip.eval.scorer import RANKING_TITLES


class Measure(NamedTuple):
    """One number of a model on a benchmark. unit: "%" for a fraction."""

    model: str
    protocol: str
    benchmark: str
    measure: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None
    n: int
    unit: str
    settings: str  # equal in comparable rows
    note: str = ""  # why no published number can be compared with it


def measures(result: dict[str, Any]) -> list[Measure]:
    """Return the numbers of a result file that belong in a table; none if an evaluation did not write it."""
    name = result.get("protocol")
    if not isinstance(name, str) or not isinstance(result.get("benchmarks"), dict):
        return []
    protocol = protocol_of(name)
    model = str(result.get("run") or result.get("model") or "")
    settings = ", ".join(_settings(result))
    return [
        Measure(
            model,
            protocol.title,
            benchmark,
            measured.title,
            measured.value,
            measured.chance,
            measured.interval,
            measured.n,
            measured.unit,
            settings,
            str(numbers.get("note") or ""),
        )
        for benchmark, numbers in result["benchmarks"].items()
        for measured in protocol.measured(numbers, result.get("scorer") == "pooled")
    ]


def _settings(result: dict[str, Any]) -> Iterable[str]:
    """Yield what models have to have in common to be compared."""
    yield from (f"{name} {value}" for name, value in result.get("settings", {}).items() if value != "")
    yield f"{result['image_size']} px" if result.get("image_size") else "pictures in their own shapes"
    yield str(result.get("scorer"))
    if result.get("scorer") != "pooled" and result.get("own_similarity"):
        yield f"own similarity {RANKING_TITLES[result['own_similarity']]}"
    if result.get("precision", "fp32") != "fp32":
        yield str(result["precision"])


def as_text(found: Sequence[Measure], form: str = "text") -> str:
    """Return the table. Where models differ in them, prompts, image size and scorer of each follow below it."""
    models = list(dict.fromkeys(m.model for m in found))
    rows = list(dict.fromkeys((m.protocol, m.benchmark, m.measure) for m in found))
    cells = {(m.protocol, m.benchmark, m.measure, m.model): m for m in found}
    lines = []
    for protocol, benchmark, measure in rows:
        row_cells = [cells.get((protocol, benchmark, measure, model)) for model in models]
        first = next(m for m in row_cells if m is not None)
        chance = shown(first.chance, first.unit) if first.chance is not None else "–"
        line = [Shown(measure), Shown(f"{first.n:,}"), Shown(chance), *map(_shown, row_cells)]
        lines.append(Line(f"{benchmark} ({protocol})", line))
    heads = [Head("measure", words=True), *map(Head, ("n", "chance", *models))]
    records = [_record(measure) for measure in found]
    notes = list(dict.fromkeys(f"{m.benchmark} ({m.protocol}): {m.note}" for m in found if m.note))
    notes += _differences(found)
    return render(Grid(heads, lines, notes=notes, corner="benchmark", records=records), form).rstrip("\n")


def _shown(measure: Measure | None) -> Shown:
    if measure is None:
        return Shown("–")
    value, *ends = (shown(number, measure.unit) for number in (measure.value, *(measure.interval or ())))
    return Shown(value, f"[{', '.join(ends)}]" if ends else "")


def _record(measure: Measure) -> dict[str, Any]:
    """Return a measure as a line of the CSV, which has one for each model, in fractions."""
    low, high = measure.interval or (None, None)
    record = measure._asdict()
    del record["interval"], record["note"]
    return {**record, "ci95_low": low, "ci95_high": high}


def _differences(found: Sequence[Measure]) -> list[str]:
    """Return the settings of each model on the benchmarks where models were not evaluated alike."""
    notes = []
    for protocol, benchmark in dict.fromkeys((m.protocol, m.benchmark) for m in found):
        settings = {m.model: {"": m.settings} for m in found if (m.protocol, m.benchmark) == (protocol, benchmark)}
        notes += [f"{benchmark} ({protocol}): {said}" for _, said in differing(settings)]
    return notes
