"""One table of loose result files: ``filip eval table results/*.json``, whichever command of the evaluation wrote them.

Lines are benchmarks and what is measured on them, columns are models; a cell is a percentage with its 95 % interval.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.protocols import protocol_of, shown
from filip.files import nothing_at

FORMS = ("text", "markdown", "csv")


@dataclass
class TableOptions:
    results: list[str] = option(MISSING, "result files, or folders of them; also as plain arguments")
    form: str = option("text", "text, markdown or csv", choices=FORMS)


class Measure(NamedTuple):
    """One number of a model on a benchmark. unit: "%" of a fraction."""

    model: str
    protocol: str
    benchmark: str
    measure: str
    value: float
    chance: float | None
    interval: tuple[float, float] | None
    n: int
    unit: str
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
            protocol.images(numbers),
            measured.unit,
            settings,
        )
        for benchmark, numbers in result["benchmarks"].items()
        for measured in protocol.measured(numbers)
    ]


def _settings(result: dict[str, Any]) -> Iterable[str]:
    """What models have to have in common to be compared."""
    yield from (f"{name} {value}" for name, value in result.get("settings", {}).items() if value != "")
    yield f"{result.get('image_size')} px"
    yield str(result.get("scorer"))
    if result.get("precision", "fp32") != "fp32":
        yield str(result["precision"])


def as_text(found: Sequence[Measure], form: str = "text") -> str:
    """The table. Below it, where models differ in them, prompts, image size and scorer of each."""
    models = list(dict.fromkeys(m.model for m in found))
    lines = list(dict.fromkeys((m.protocol, m.benchmark, m.measure) for m in found))
    cells = {(m.protocol, m.benchmark, m.measure, m.model): m for m in found}
    rows = [["benchmark", "measure", "images", "chance", *models]]
    for line in lines:
        own = [cells[(*line, model)] for model in models if (*line, model) in cells]
        chance = shown(own[0].chance, own[0].unit) if own[0].chance is not None else "–"
        values = [_cell(cells.get((*line, model))) for model in models]
        rows.append([f"{line[1]} ({line[0]})", line[2], f"{own[0].n:,}", chance, *values])
    return "\n".join([*_written(rows, form), *(_differences(found) if form != "csv" else [])])


def _cell(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    value, *interval = (shown(v, measure.unit) for v in (measure.value, *(measure.interval or ())))
    return f"{value} [{', '.join(interval)}]" if interval else value


def _written(rows: list[list[str]], form: str) -> list[str]:
    if form == "csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().splitlines()
    if form == "markdown":
        ruler = ["---", "---", *["---:"] * (len(rows[0]) - 2)]
        return ["| " + " | ".join(row) + " |" for row in (rows[0], ruler, *rows[1:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(pairs)
        )
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return [texts[0].rstrip(), "-" * len(texts[0]), *(text.rstrip() for text in texts[1:])]


def _differences(found: Sequence[Measure]) -> list[str]:
    """Settings of each model on the benchmarks where models were not evaluated alike."""
    notes = []
    for protocol, benchmark in dict.fromkeys((m.protocol, m.benchmark) for m in found):
        own = {m.model: m.settings for m in found if (m.protocol, m.benchmark) == (protocol, benchmark)}
        if len(set(own.values())) > 1:
            each = "; ".join(f"{model}: {settings}" for model, settings in own.items())
            notes.append(f"{benchmark} ({protocol}): {each}")
    return ["", *notes] if notes else []


def with_files(arguments: Sequence[str]) -> list[str]:
    """``a.json b.json form=csv`` as ``results=[a.json,b.json] form=csv``."""
    plain = [argument for argument in arguments if "=" not in argument and not argument.startswith("-")]
    return [*([f"results=[{','.join(plain)}]"] if plain else []), *(a for a in arguments if a not in plain)]


if __name__ == "__main__":
    run_command(main, TableOptions, argv=with_files(sys.argv[1:]))
