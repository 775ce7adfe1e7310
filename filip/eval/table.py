"""One table of loose result files: ``filip eval table results/*.json``, whichever command of the evaluation wrote them.

Lines are benchmarks and what is measured on them, columns are models; a cell is a percentage with its 95 % interval.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.scorer import RANKINGS
from filip.files import nothing_at
from filip.table_writer import Grid, Head, Line, Shown, differing, render

FORMS = ("text", "markdown", "csv")


@dataclass
class TableOptions:
    results: list[str] = option(MISSING, "result files, or folders of them; also as plain arguments")
    form: str = option("text", "text, markdown or csv", choices=FORMS)


class Measure(NamedTuple):
    """One number of a model on a benchmark, a fraction."""

    model: str
    protocol: str
    benchmark: str
    measure: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None
    n: int
    settings: str  # what has to be equal for rows to be comparable


def main(config: TableOptions) -> None:
    """One table of result files of any evaluation."""
    found = [measure for file in files_of(config.results) for measure in measures(_read(file))]
    if not found:
        raise UserError(f"no results of an evaluation in {', '.join(config.results)}")
    print(as_text(found, config.form))


def files_of(places: Sequence[str]) -> list[Path]:
    """Result files: files as they stand, and all ``.json`` below folders. UserError for what is not there."""
    files: list[Path] = []
    for place in map(Path, places):
        if not place.exists():
            raise UserError(nothing_at(place, "give result files, or folders of them"))
        files += sorted(place.rglob("*.json")) if place.is_dir() else [place]
    return files


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    return content if isinstance(content, dict) else {}


def measures(result: dict[str, Any]) -> list[Measure]:
    """The numbers of a result file that belong into a table; none if it is no result of an evaluation."""
    model = str(result.get("run") or result.get("model") or "")
    found = []
    for name, numbers in {**result.get("tasks", {}), **result.get("benchmarks", {})}.items():
        for protocol, measure, value, chance, interval in _numbers(numbers):
            n = int(numbers.get("n") or numbers.get("images") or 0)
            settings = ", ".join(_settings(result, numbers, protocol))
            found.append(Measure(model, protocol, name, measure, value, chance, interval, n, settings))
    return found


def _numbers(found: dict[str, Any]) -> Iterable[tuple[str, str, float, float | None, Any]]:
    """(protocol, measure, value, chance, interval), recognised by what a protocol writes."""
    if "i2t" in found:
        for way, said in (("i2t", "image to text"), ("t2i", "text to image")):
            for rank in ("r1", "r5", "r10"):
                chance, interval = found["chance"][way][rank], found["ci95"][way][rank]
                yield "retrieval", f"{said} R@{rank[1:]}", found[way][rank], chance, interval
    elif "image" in found and isinstance(found["image"], dict):
        names = dict(zip(RANKINGS, ("by s^I", "by s^T", "by their mean"), strict=True))
        for by, said in names.items():
            yield "selection", said, found[by]["value"], found["chance"], found[by]["ci95"]
    elif "among_things" in found:
        things = found["among_things"]
        yield "pointing", "own thing", found["value"], found["chance"], found["ci95"]
        yield "pointing", "among things", things["value"], things["chance"], things["ci95"]
    elif "miou" in found:
        yield "segmentation", "mIoU", found["miou"], found.get("chance"), found["ci95"]
    elif "metric" in found:
        protocol = "linear probe" if "protocol" in found else "zero-shot"
        yield protocol, found["metric"], found["value"], found["chance"], found["ci95"]


def _settings(result: dict[str, Any], numbers: dict[str, Any], protocol: str) -> Iterable[str]:
    if protocol == "zero-shot":
        yield f"{numbers.get('prompts')} prompts of {result.get('prompt_file')} ({result.get('ensemble')})"
    yield f"{result.get('image_size')} px"
    yield str(result.get("scorer"))
    if result.get("precision", "fp32") != "fp32":
        yield str(result["precision"])


def as_text(found: Sequence[Measure], form: str = "text") -> str:
    """Return the table. Below it, where models differ in them, prompts, image size and scorer of each."""
    models = list(dict.fromkeys(m.model for m in found))
    rows = list(dict.fromkeys((m.protocol, m.benchmark, m.measure) for m in found))
    cells = {(m.protocol, m.benchmark, m.measure, m.model): m for m in found}
    lines = []
    for protocol, benchmark, measure in rows:
        own = [cells.get((protocol, benchmark, measure, model)) for model in models]
        first = next(m for m in own if m is not None)
        chance = f"{100 * first.chance:.1f}" if first.chance is not None else "–"
        shown = [Shown(measure), Shown(f"{first.n:,}"), Shown(chance), *map(_shown, own)]
        lines.append(Line(f"{benchmark} ({protocol})", shown))
    heads = [Head("measure", words=True), *map(Head, ("images", "chance", *models))]
    records = [_record(measure) for measure in found]
    notes = _differences(found)
    return render(
        Grid(heads, lines, notes=notes, corner="benchmark", whole=True, records=records), form
    ).rstrip("\n")


def _shown(measure: Measure | None) -> Shown:
    if measure is None:
        return Shown("–")
    ends = [f"{100 * end:.1f}" for end in measure.interval or ()]
    return Shown(f"{100 * measure.value:.1f}", f"[{', '.join(ends)}]" if ends else "")


def _record(measure: Measure) -> dict[str, Any]:
    """Return a measure as a line of the CSV, which has one for each model, in fractions."""
    low, high = measure.interval or (None, None)
    found = measure._asdict()
    del found["interval"]
    return {**found, "ci95_low": low, "ci95_high": high}


def _differences(found: Sequence[Measure]) -> list[str]:
    """Return the settings of each model on the benchmarks where models were not evaluated alike."""
    notes = []
    for protocol, benchmark in dict.fromkeys((m.protocol, m.benchmark) for m in found):
        own = {m.model: {"": m.settings} for m in found if (m.protocol, m.benchmark) == (protocol, benchmark)}
        notes += [f"{benchmark} ({protocol}): {said}" for _, said in differing(own)]
    return notes


def with_files(arguments: Sequence[str]) -> list[str]:
    """``a.json b.json form=csv`` as ``results=[a.json,b.json] form=csv``."""
    plain = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    return [*([f"results=[{','.join(plain)}]"] if plain else []), *(a for a in arguments if a not in plain)]


if __name__ == "__main__":
    run_command(main, TableOptions, argv=with_files(sys.argv[1:]))
