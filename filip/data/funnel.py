"""Account in a funnel for what came into each stage, what went out, and why the rest was dropped.

A stage writes a fragment; ``python -m filip.data.funnel fragments=[a.json,b.json] out=funnel.json`` merges them.
In each fragment ``in == out + sum(dropped)``, and a stage takes in the pairs that the one before gave out: both are
checked when a fragment is written and when it is read, so that no pair can vanish between two files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import json_record, write_json


@dataclass(frozen=True)
class Fragment:
    """A stage of a source in the funnel. Counts are in ``unit`` ("pairs", "candidates")."""

    stage: str
    source: str
    n_in: int
    n_out: int
    dropped: Mapping[str, int]
    unit: str = "pairs"
    notes: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form, with reasons by falling count."""
        dropped = dict(sorted(self.dropped.items(), key=lambda item: (-item[1], item[0])))
        about = {"stage": self.stage, "source": self.source, "unit": self.unit}
        return {**about, "in": self.n_in, "out": self.n_out, "dropped": dropped, "notes": dict(self.notes)}


def check_fragment(fragment: Fragment, where: str) -> None:
    """Raise UserError unless every count is at least 0 and ``in == out + sum(dropped)``."""
    counts = {"in": fragment.n_in, "out": fragment.n_out, **fragment.dropped}
    bad = {key: value for key, value in counts.items() if not isinstance(value, int) or value < 0}
    if bad:
        raise UserError(f"{where}: counts must be whole numbers of at least 0, found {bad}")
    accounted = fragment.n_out + sum(fragment.dropped.values())
    if fragment.n_in != accounted:
        raise UserError(
            f"{where}: {fragment.n_in} {fragment.unit} came in, but {fragment.n_out} out and "
            f"{sum(fragment.dropped.values())} dropped make {accounted}. Run the stage again; if it persists "
            f"it is a bug of stage '{fragment.stage}'"
        )


def write_fragment(path: str | Path, fragment: Fragment) -> None:
    """Check and write a fragment, atomically. Reasons without a count are left out."""
    fragment = replace(fragment, dropped={reason: count for reason, count in fragment.dropped.items() if count})
    check_fragment(fragment, str(path))
    write_json(path, fragment.as_dict())


def read_fragment(path: str | Path) -> Fragment:
    """Read and check a fragment. Raises UserError naming the file if it is missing, not JSON, or does not add up."""
    names = ("stage", "source", "in", "out", "dropped")
    raw = json_record(path, "a funnel fragment, which a stage writes", *names)
    stage, source, n_in, n_out, dropped = (raw[name] for name in names)
    fragment = Fragment(stage, source, n_in, n_out, dropped, raw.get("unit", "pairs"), raw.get("notes", {}))
    check_fragment(fragment, str(path))
    return fragment


def merge(fragments: Iterable[Fragment]) -> dict[str, Any]:
    """Return ``{"stages": [fragment ...]}`` in the order given.

    Raises UserError when a stage takes in another number than the previous stage of the same source and
    unit gave out.
    """
    last: dict[tuple[str, str], Fragment] = {}
    stages = []
    for fragment in fragments:
        before = last.get((fragment.source, fragment.unit))
        if before is not None and before.n_out != fragment.n_in:
            raise UserError(
                f"funnel of '{fragment.source}': stage '{before.stage}' gave out {before.n_out} {before.unit}, but "
                f"'{fragment.stage}' took in {fragment.n_in}; one of the two files is stale: run that stage again"
            )
        last[fragment.source, fragment.unit] = fragment
        stages.append(fragment.as_dict())
    return {"stages": stages}


@dataclass
class FunnelConfig:
    fragments: list[str] = option(MISSING, "fragments in the order of the stages, one source after the other")
    out: str = option(MISSING, "merged funnel, JSON", writes="file")


def main(config: FunnelConfig) -> None:
    """Merge the funnel fragments of all stages and sources into one file, and print them."""
    merged = merge(read_fragment(path) for path in config.fragments)
    write_json(config.out, merged)
    for stage in merged["stages"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in stage["dropped"].items()) or "nothing"
        print(
            f"{stage['source']:>12}  {stage['stage']:<12} {stage['in']:>12,} → {stage['out']:>12,} "
            f"{stage['unit']}; dropped: {reasons}"
        )


if __name__ == "__main__":
    run_command(main, FunnelConfig)
