"""Puts result files together: ``filip eval merge parts=[cifar10.json,dtd.json] out=zero_shot.json``.

The parts are of one model and protocol and of different benchmarks, as a study with ``eval.per_card`` or several jobs
of a cluster write them. The merged file, and the outcomes next to it, are those of one command over all the benchmarks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.outcomes import Record, outcomes_file, read_outcomes, write_outcomes
from filip.files import nothing_at, write_json

OF_BENCHMARKS = ("benchmarks", "skipped", "requests")  # keys of a result file whose entries are by benchmark


@dataclass
class Merge:
    parts: list[str] = option(MISSING, "result files of one model and protocol, in the order of the benchmarks")
    out: str = option(MISSING, "the merged result file (JSON)", writes="file")


def main(config: Merge) -> None:
    """Put result files of one model on several benchmarks together."""
    result, record = merged([Path(part) for part in config.parts])
    write_outcomes(config.out, record)
    write_json(config.out, result)


def merged(parts: list[Path]) -> tuple[dict[str, Any], Record]:
    """Return the result and the outcomes of all parts.

    Raises UserError if a part cannot be read or has no outcomes, parts disagree about the model or its settings, or
    two have the same benchmark.
    """
    result: dict[str, Any] = {}
    record: Record = {}
    for part in parts:
        found = _read(part)
        if not result:
            result = found
        else:
            _add(result, found, part, parts[0])
        if outcomes_file(part).is_file():
            record |= read_outcomes(part)
        elif found.get("benchmarks"):
            raise UserError(f"{part} has no outcomes next to it ({outcomes_file(part)}); evaluate it again")
    return result, record


def _add(result: dict[str, Any], found: dict[str, Any], part: Path, first: Path) -> None:
    first_says, says = _about(result), _about(found)
    if different := sorted(key for key in {**first_says, **says} if first_says.get(key) != says.get(key)):
        key = different[0]
        raise UserError(
            f"{part} and {first} are of different evaluations: {key} is {says.get(key)!r} and {first_says.get(key)!r}"
        )
    for key in OF_BENCHMARKS:
        if key in found:
            own = result.setdefault(key, {})
            if twice := sorted(set(own) & set(found[key])):
                raise UserError(f"{part} has {twice[0]}, as another part does")
            own |= found[key]


def _about(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a result says about model and evaluation, each setting of the protocol as a separate entry."""
    settings = {f"settings.{name}": value for name, value in result.get("settings", {}).items()}
    return {k: v for k, v in result.items() if k not in (*OF_BENCHMARKS, "settings")} | settings


def _read(part: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(part.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(nothing_at(part, "give result files of evaluations")) from error
    except ValueError as error:
        raise UserError(f"{part} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or not {"protocol", "benchmarks"} <= set(content):
        raise UserError(f"{part} is not a result of an evaluation: it names no protocol or no benchmarks")
    return content


if __name__ == "__main__":
    run_command(main, Merge)
