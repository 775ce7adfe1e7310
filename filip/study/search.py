"""Choose the best values of the settings that a study searches, by the scores of its trials.

python -m filip.study.search card=demo_scenes_search settings=[optimizer.base_lr] trials=[a.json,b.json] out=filip.txt
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError
from filip.common.files import json_record, replacing
from filip.common.progress import say
from filip.train.telemetry import score_on

Values = tuple[Any, ...]


@dataclass
class Search:
    card: str = option(MISSING, "name of the card that the trials were evaluated on at their end")
    settings: list[str] = option(MISSING, "the settings that were tried, e.g. [optimizer.base_lr]")
    trials: list[str] = option(MISSING, "results of the trials, the JSON files of filip.train")
    out: str = option(MISSING, "the best values, as arguments of filip.train", writes="file")


def main(config: Search) -> None:
    """Write the values with the highest mean score over the seeds of the search."""
    trials = [json_record(file, "the result of a training", "config", "evaluated") for file in config.trials]
    by_values = scores(trials, config.settings, config.card)
    best = best_values(by_values, config.card)
    for values, by_seed in by_values.items():
        say(f"{_shown(config.settings, values)}: {100 * fmean(by_seed.values()):.1f} %{' <-' * (values == best)}")
    with replacing(config.out) as part:
        Path(part).write_text(_shown(config.settings, best) + "\n", encoding="utf-8")


def scores(trials: Iterable[Mapping[str, Any]], settings: list[str], card: str) -> dict[Values, dict[int, float]]:
    """Return the scores of trials on a card by their values of the settings and by seed, in the order of the trials.

    trials: what :func:`filip.train.loop.finish` wrote.
    """
    by_values: dict[Values, dict[int, float]] = {}
    for trial in trials:
        *values, seed = (_value(trial["config"], setting) for setting in (*settings, "seed"))
        by_values.setdefault(tuple(values), {})[seed] = score_on(card, trial["evaluated"])
    return by_values


def best_values(by_values: Mapping[Values, Mapping[int, float]], card: str) -> Values:
    """Return the values with the highest mean score, the first of several. Raise UserError if a score is missing."""
    means = {values: fmean(by_seed.values()) for values, by_seed in by_values.items()}
    if broken := [values for values, mean in means.items() if not mean >= 0]:
        raise UserError(
            f"the trials with {broken[0]} have no score on {card}: their evaluation failed. The run's log.jsonl has "
            "the reason; remove the trial's files in models/ to train it again"
        )
    return max(means, key=lambda values: means[values])


def _value(config: Any, setting: str) -> Any:
    for key in setting.split("."):
        if not isinstance(config, Mapping) or key not in config:
            raise UserError(f"settings: the config of a trial has no {setting}; give its name, e.g. optimizer.base_lr")
        config = config[key]
    return config


def _shown(settings: list[str], values: Values) -> str:
    written = (value if isinstance(value, str) else json.dumps(value) for value in values)
    return " ".join(f"{setting}={value}" for setting, value in zip(settings, written, strict=True))


if __name__ == "__main__":
    run_command(main, Search)
