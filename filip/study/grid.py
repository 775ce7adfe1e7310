"""Write the runs of a study out: a run for each seed, and the trials of its search."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Sequence[Any]]  # the values to try of each setting of filip.train


def combinations(settings: Settings) -> list[dict[str, str]]:
    """Return every combination of the settings' values; one empty combination of no settings."""
    return [dict(zip(settings, map(str, values), strict=True)) for values in itertools.product(*settings.values())]


def with_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """Write ``seeds: 3`` out: each run once more with seed 1 and 2, averaged into its row of every table."""
    runs, replicas = dict(config["runs"]), dict[str, list[str]]()
    for name, settings in config["runs"].items():
        for seed in range(1, config.get("seeds", 1)):
            member = f"{name}_s{seed}"
            label = f"{settings['label']}, seed {seed}"
            runs[member] = {**settings, "label": label, "overrides": [*settings.get("overrides", []), f"seed={seed}"]}
            replicas[name] = [*replicas.get(name, []), member]
    return {**config, "runs": runs, "replicas": replicas}


def searched_settings(config: Mapping[str, Any], run: Mapping[str, Any]) -> Settings:
    """Return the settings of which a run takes the best values: its own ``search``, or the study's."""
    settings: Settings = run.get("search", config.get("search", {}).get("settings", {}))
    return settings


def trials(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the trainings of the search by name: each run with each combination of values and each seed of it."""
    by_name = {}
    for name, run in config["runs"].items():
        if settings := searched_settings(config, run):
            for values, seed in itertools.product(combinations(settings), config["search"]["seeds"]):
                words = [f"{setting.rpartition('.')[2]} {value}" for setting, value in values.items()]
                label = ", ".join([run["label"], *words, f"seed {seed}"])
                tried = [f"{setting}={value}" for setting, value in values.items()]
                overrides = [*run.get("overrides", []), *tried, f"seed={seed}"]
                trial = "-".join([name, *(re.sub(r"[^\w.-]+", "_", value) for value in values.values())])
                by_name[f"{trial}_s{seed}"] = {**run, "label": label, "overrides": overrides, "run": name}
    return by_name
