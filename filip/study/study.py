"""The reader of a study.

A study is one YAML of ``workflow/config``. This class is the only reader of it: the workflow extends it by paths and
resources (``workflow/study.py``), the report asks it for rows, labels and seeds.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from filip.common.errors import UserError
from filip.common.files import nothing_at
from filip.common.progress import say
from filip.eval.families import PROMPTS
from filip.study.config_checks import check_config
from filip.study.table_kinds import PROTOCOLS, TABLES

if TYPE_CHECKING:
    from filip.train.config import TrainConfig


class Study:
    """A checked study config and the questions that are asked of it.

    config: the mapping as it was given (``seeds: 3`` not yet written out).

    Raises UserError naming the first offending key.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config = check_config(config)
        self.name: str = config["study"]
        self.title: str = config["title"]
        self._replicas: dict[str, list[str]] = {}
        self.runs: dict[str, dict[str, Any]] = dict(config["runs"])
        # seeds: 3 is each run once more with seed 1 and 2, averaged into its row of every table
        for run, seed in itertools.product(config["runs"], range(1, config.get("seeds", 1))):
            settings, name = config["runs"][run], f"{run}_s{seed}"
            overrides = [*settings.get("overrides", []), f"seed={seed}"]
            self.runs[name] = {**settings, "label": f"{settings['label']}, seed {seed}", "overrides": overrides}
            self._replicas.setdefault(run, []).append(name)
        self.trials: dict[str, dict[str, Any]] = trials(config)
        self.fine_tunes: dict[str, dict[str, Any]] = config.get("fine_tune", {})
        self.efficiency: dict[str, dict[str, Any]] = config.get("efficiency", {})
        self.peers: dict[str, dict[str, Any]] = config.get("peers", {})
        self.evaluation: dict[str, Any] = config["eval"]
        self.results: str = f"results/{self.name}"
        self.data_dir: str = config.get("data_dir", f"{self.results}/data")
        # The corpus that is built here, with its list, its images and its benchmarks.
        self.corpus = f"{Path(self.data_dir).parent}/corpus"

    # ---- training ------------------------------------------------------------------------------------

    @property
    def trained(self) -> dict[str, dict[str, Any]]:
        """Return pre-training runs of every seed, then fine-tunings, then the trials of the search, by name."""
        return {**self.runs, **self.fine_tunes, **self.trials}

    @property
    def sources(self) -> list[str]:
        """Return all sources, also of single runs and of fine-tunings, each once, in order of first use."""
        of_runs = [source for run in self.runs.values() for source in run.get("sources", [])]
        tuned = [tune["source"] for tune in self.fine_tunes.values()]
        return list(dict.fromkeys([*self.config["sources"], *of_runs, *tuned, *self.evaluation.get("sources", [])]))

    def replicas(self, run: str, *protocols: str) -> list[str]:
        """Return a run and its repetitions with other seeds; the run alone if it has none.

        protocols: evaluations for them all; the ones of ``eval.one_seed`` see the first training only.
        """
        single = set(protocols) & set(self.evaluation.get("one_seed", []))
        return [run] if single else [run, *self._replicas.get(run, [])]

    def _first(self, run: str) -> str:
        """Return the run that this one repeats with another seed, or itself."""
        return next((name for name, members in self._replicas.items() if run in members), run)

    def searched(self, run: str) -> tuple[str, list[str]] | None:
        """Return the first seed of a run and the settings of which all its seeds take the best values, or None."""
        first = self._first(run)
        settings = searched_settings(self.config, self.runs[first]) if first in self.runs else {}
        return (first, list(settings)) if settings else None

    def trials_of(self, run: str) -> list[str]:
        """Return the trials of a run's search."""
        return [name for name, trial in self.trials.items() if trial["run"] == run]

    def training(self, name: str) -> dict[str, Any]:
        """Return the settings of a run, fine-tuning or efficiency row.

        These are experiment, sources, overrides and from (None: scratch).
        """
        shared = self.config["train"]
        if name in self.fine_tunes:
            entry = self.fine_tunes[name]
            sources = [entry["source"]]
            # The architecture is the run's. Its other overrides are about pre-training, and would undo settings of the
            # fine-tuning's experiment (no AutoAugment, no back-translation).
            inherited = [text for text in self._overrides(entry["from"]) if text.startswith("model.")]
        elif name in self.runs or name in self.trials:
            entry = self.runs.get(name) or self.trials[name]
            sources = entry.get("sources", self.config["sources"])
            inherited = self._overrides(entry["variant_of"]) if "variant_of" in entry else []
        else:
            entry, sources = self.efficiency[name], self.config["sources"]
            follows = "overrides" not in entry and entry.get("accuracy_of") in self.runs
            inherited = self._overrides(entry["accuracy_of"]) if follows else []
            shared = {**shared, **self.config.get("efficiency_train", {})}
        return {
            "experiment": entry.get("experiment", shared["experiment"]),
            "sources": sources,
            "overrides": [*shared.get("overrides", []), *inherited, *entry.get("overrides", [])],
            "from": entry.get("from"),
        }

    def _overrides(self, run: str) -> list[str]:
        """Return a run's overrides without the ones that all trainings share."""
        entry = self.runs[run]
        inherited = self._overrides(entry["variant_of"]) if "variant_of" in entry else []
        return [*inherited, *entry.get("overrides", [])]

    def launch_settings(self, name: str) -> dict[str, Any]:
        """Return the study's ``launch``, with the training's over it.

        The latter is in the settings of the training, of its base or in efficiency_train.
        """
        shared = self.config["launch"]
        if name in self.efficiency:
            launch = self.config.get("efficiency_train", {}).get("launch", {})
        else:
            entry = self.trained[name]
            launch = entry.get("launch") or self.runs.get(entry.get("variant_of", ""), {}).get("launch", {})
        resources = {**shared.get("resources", {}), **launch.get("resources", {})}
        return {**shared, **launch, "resources": resources}

    def resolved(self, name: str) -> TrainConfig:
        """Compose the training config from the settings of ``name``; without its files, which the workflow adds."""
        training = self.training(name)
        start = [f"init_from={training['from']}"] if training["from"] else []
        return resolve(f"experiment={training['experiment']}", *training["overrides"], *start)

    @property
    def prompts(self) -> str:
        """Return the prompts of the evaluations: a file, or one prompt with {c} in it."""
        return str(self.evaluation.get("prompts", PROMPTS))

    # ---- evaluation and tables -----------------------------------------------------------------------

    def benchmarks(self, protocol: str) -> list[str]:
        """Return the benchmark cards of a protocol; the linear probe's are zero_shot's unless stated."""
        named = self.evaluation.get(protocol, [])
        return named or (self.evaluation["zero_shot"] if protocol == "linear_probe" else [])

    @property
    def all_benchmarks(self) -> list[str]:
        """Return the benchmarks of all protocols, each once."""
        return list(dict.fromkeys(name for protocol in PROTOCOLS for name in self.benchmarks(protocol)))

    def rows(self, table: str) -> list[str]:
        """Return the rows of a table in order: most kinds list runs, then peers. Without rows there is no table."""
        kind = TABLES[table]
        runs = list(self.config["runs"])
        if kind.rows == "evaluated":
            return list(self.config["tables"].get(table, runs if self.benchmarks(table) else []))
        if kind.rows != "listed":
            rows_by_table = {"efficiency": list(self.efficiency), "runs": runs}
            return rows_by_table.get(kind.rows, [*runs, *self.fine_tunes])
        named = self.config["tables"].get(table, [])
        peers = self.peers if named and kind.with_peers else {}
        return list(dict.fromkeys([*named, *peers]))

    @property
    def tables(self) -> list[str]:
        """Return the names of the tables that have rows."""
        return [name for name in TABLES if self.rows(name)]

    @property
    def evaluated(self) -> list[str]:
        """Return every training that a table shows, and its replicas, in order of first use."""
        return [model for model in self.models if model not in self.peers]

    def evaluated_by(self, protocol: str) -> list[str]:
        """Return the models that a protocol evaluates for all tables, including replicas."""
        models = []
        for name in self.tables:
            if protocol in TABLES[name].protocols:
                rows = self.rows(name)
                if TABLES[name].rows == "efficiency":  # of the trained runs whose accuracy it shows
                    rows = [row["accuracy_of"] for row in self.efficiency.values() if row.get("accuracy_of")]
                models += [member for row in rows for member in self.replicas(row, protocol)]
        return list(dict.fromkeys(models))

    @property
    def models(self) -> list[str]:
        """Return every run, replica and peer that a protocol evaluates."""
        return list(dict.fromkeys(model for protocol in PROTOCOLS for model in self.evaluated_by(protocol)))

    def evaluated_on(self, model: str) -> dict[str, list[str]]:
        """Return by protocol the benchmarks on which a model is evaluated, without those whose pictures it saw."""
        unseen, run = self.config.get("own_pictures", {}), self._first(model)
        found = {
            protocol: [n for n in self.benchmarks(protocol) if run not in unseen.values() or unseen.get(n, run) == run]
            for protocol in PROTOCOLS
            if model in self.evaluated_by(protocol)
        }
        return {protocol: names for protocol, names in found.items() if names}

    def label(self, name: str) -> str:
        """Return the name in tables of a training, a peer or an efficiency row."""
        entry = {**self.efficiency, **self.peers, **self.trained}.get(name, {})
        return str(entry.get("label", name))


def searched_settings(config: Mapping[str, Any], run: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return the values that a run's search tries for each setting: its own ``search``, or the study's."""
    settings: Mapping[str, Sequence[Any]] = run.get("search", config.get("search", {}).get("settings", {}))
    return settings


def trials(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the trainings of the search by name: each run with each combination of values and each seed of it."""
    by_name = {}
    for name, run in config["runs"].items():
        if settings := searched_settings(config, run):
            for *values, seed in itertools.product(*settings.values(), config["search"]["seeds"]):
                texts = [str(value) for value in values]
                tried = dict(zip(settings, texts, strict=True))
                words = [f"{setting.rpartition('.')[2]} {value}" for setting, value in tried.items()]
                label = ", ".join([run["label"], *words, f"seed {seed}"])
                given = [f"{setting}={value}" for setting, value in tried.items()]
                overrides = [*run.get("overrides", []), *given, f"seed={seed}"]
                trial = "-".join([name, *(re.sub(r"[^\w.-]+", "_", value) for value in texts)])
                by_name[f"{trial}_s{seed}"] = {**run, "label": label, "overrides": overrides, "run": name}
    return by_name


@lru_cache(maxsize=256)
def resolve(*arguments: str) -> TrainConfig:
    """Compose the training config with Hydra from ``arguments``; the paths of a run need not be given.

    Raises UserError if an override does not fit the training config or has a value that cannot work.
    """
    from filip.cli.command import compose_config
    from filip.train.config import TrainConfig

    try:
        # The places of a run's files are no part of its training.
        config = compose_config(TrainConfig, [*arguments, "run_dir=.", "out=."], "train")
        return config.check(weights_exist=False)  # the weights to start from may not be trained yet
    except UserError as error:
        raise UserError(f"study config, training overrides: {error}") from error


def load_study(path: str | Path | None, results: str | Path | None = None) -> Study:
    """Read a study from ``path``, or, if that is None, from the ``study.json`` that its results were made with.

    The number of seeds may have been given on the command line (``make demo SEEDS=3``), so that the YAML lacks it
    and its tables would show one of three trainings. If ``path`` does not state it, it is taken from
    ``results``/study.json. Raises UserError if a file is missing or is not a study config.
    """
    effective = Path(results) / "study.json" if results is not None else None
    if path is None:
        if results is not None and not Path(results).exists():
            raise UserError(nothing_at(results, "give the results of a study, e.g. results/demo"))
        if effective is None or not effective.is_file():
            raise UserError(f"no study.json in {results}; name the study, e.g. study=workflow/config/demo.yaml")
        return Study(_read(effective))
    config = _read(Path(path))
    if effective is not None and effective.is_file() and "seeds" not in config:
        made_with = _read(effective)
        if made_with["study"] == config["study"] and made_with.get("seeds", 1) > 1:
            config["seeds"] = made_with["seeds"]
            say(f"averaging over {config['seeds']} seeds, as {effective} says")
    return Study(config)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(nothing_at(file, "the studies lie in workflow/config, e.g. workflow/config/demo.yaml"))
    try:
        text = file.read_text(encoding="utf-8")
        config = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not valid {file.suffix.lstrip('.').upper()}: {error}") from error
    if not isinstance(config, dict) or "study" not in config:
        raise UserError(f"{file} has no key `study`; is it a study config (workflow/config/*.yaml)?")
    return config
