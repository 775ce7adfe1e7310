"""Checks of a study config: the schema, names that exist, and accuracies of the same settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import resources
from typing import TYPE_CHECKING, Any

import jsonschema
import yaml

from filip.common.errors import UserError
from filip.data.cards import load_source
from filip.eval.cards import load_card
from filip.study.table_kinds import PROTOCOLS, TABLES

if TYPE_CHECKING:
    from filip.train.config import TrainConfig

# The settings for learning in which a timing run of a few steps may differ from the training of its row's accuracy,
# which the row shows: how many pairs there are and in which order they come, and the searched settings, since no step
# takes longer for it.
NOT_COMPARED = (
    *("seed", "global_batch", "batch_per_rank", "epochs", "max_steps", "optimizer.warmup_steps"),
    *("data.shuffle_window_shards", "data.reader_groups"),
    *("optimizer.base_lr", "model.init_temperature"),
)
SET_BY_THE_STUDY = ("model", "root", "data", "protocols", "only", "out", "run")  # no override of an evaluation may
ALL = "all"  # beside the names of protocols: options that they all share
WITH_A_CARD = ("alignment", "explorer", "search")  # keys that name one benchmark


def check_config(config: dict[str, Any]) -> dict[str, Any]:
    """Check ``config`` against the schema and its own cross-references, and return it with its defaults.

    Raises UserError naming the first offending key, its value and the expected one.
    """
    if "study" not in config:
        raise UserError("no study given: add --configfile workflow/config/demo.yaml (or another study's YAML)")
    problems = list(jsonschema.Draft202012Validator(schema()).iter_errors(config))
    if problems:
        worst = jsonschema.exceptions.best_match(iter(problems))
        assert worst is not None
        _refuse(
            ".".join(str(part) for part in worst.absolute_path) or "the top level",
            f"{worst.message} (schema: filip/conf/study.schema.yaml)",
        )
    evaluation = {"root": "results/benchmarks", "zero_shot": [], "retrieval": [], **config.get("eval", {})}
    config = {**config, "eval": evaluation, "tables": config.get("tables", {})}
    _check_launches(config)
    _check_runs(config)
    _check_search(config)
    _check_tables(config)
    _check_cards(config)
    return config


def schema() -> dict[str, Any]:
    """Return the JSON schema of a study, with the protocols and tables that there are."""
    content = yaml.safe_load(resources.files("filip.conf").joinpath("study.schema.yaml").read_text("utf-8"))
    names = {"$ref": "#/$defs/names"}
    listed = [name for name, kind in TABLES.items() if kind.rows in ("listed", "evaluated")]
    content["properties"]["tables"]["properties"] = dict.fromkeys(listed, names)
    content["properties"]["eval"]["properties"] |= dict.fromkeys(PROTOCOLS, names)
    by_protocol = {"propertyNames": {"enum": [ALL, *PROTOCOLS]}}
    content["$defs"]["by_protocol"] |= by_protocol
    return content


def _refuse(key: str, problem: str) -> None:
    raise UserError(f"study config, key {key}: {problem}")


def _check_launches(config: dict[str, Any]) -> None:
    shared = config["launch"]
    _check_launch("launch", shared)
    entries = {f"runs.{name}": run for name, run in config["runs"].items()}
    entries |= {f"fine_tune.{name}": tune for name, tune in config.get("fine_tune", {}).items()}
    entries["efficiency_train"] = config.get("efficiency_train", {})
    for name, entry in entries.items():
        launch = entry.get("launch", {})
        _check_launch(f"{name}.launch", {**shared, **launch})
        for resource in launch.get("resources", {}):
            if resource not in {*shared.get("resources", {}), "slurm_extra"}:
                _refuse(f"{name}.launch.resources.{resource}", "is not a resource of launch; state it there as well")


def _check_launch(key: str, launch: dict[str, Any]) -> None:
    nodes = launch.get("nodes", 1)
    if launch["launcher"] != "srun" and nodes > 1:
        _refuse(f"{key}.nodes", f"{launch['launcher']} starts one node only here, not {nodes}; use srun")
    if launch["launcher"] == "srun" and launch["ranks_per_node"] == 1:
        _refuse(
            f"{key}.ranks_per_node",
            "Snakemake's Slurm plugin refuses one task per node; use two or more, or launcher: deepspeed on one node",
        )


def _check_runs(config: dict[str, Any]) -> None:
    runs = config["runs"]
    for name, run in runs.items():
        base = run.get("variant_of", name)
        _known(f"runs.{name}.variant_of", base, runs)
        if base != name and "variant_of" in runs[base]:
            _refuse(f"runs.{name}.variant_of", f"'{base}' is a variant itself; name the run that it varies")
    for name, tune in config.get("fine_tune", {}).items():
        if name in runs:
            _refuse(f"fine_tune.{name}", "a pre-training run has that name; choose another")
        _known(f"fine_tune.{name}.from", tune["from"], runs)
    trained = {**runs, **config.get("fine_tune", {})}
    for name in config.get("peers", {}):
        if name in trained:
            _refuse(f"peers.{name}", "a run has that name; choose another")


def _check_search(config: dict[str, Any]) -> None:
    """Refuse a search on what tables report, or with seeds that they report."""
    search, runs = config.get("search"), config["runs"]
    for name, run in runs.items():
        if "search" in run and search is None:
            _refuse(f"runs.{name}.search", "needs the study's `search` too, which has the card and the seeds")
    if search is None:
        return
    if reported := set(search["seeds"]) & set(range(config.get("seeds", 1))):
        _refuse("search.seeds", f"seed {min(reported)} is reported; search with others, e.g. [100, 101]")
    for protocol in PROTOCOLS:
        if search["card"] in config["eval"].get(protocol, []):
            _refuse("search.card", f"'{search['card']}' is reported by eval.{protocol}; search on another card")


def _check_tables(config: dict[str, Any]) -> None:
    trained = {**config["runs"], **config.get("fine_tune", {})}
    for table, rows in config["tables"].items():
        for row in rows:
            _known(f"tables.{table}", row, trained)
        for protocol in TABLES[table].protocols:
            if rows and not config["eval"].get(protocol) and protocol != "linear_probe":
                _refuse(f"tables.{table}", f"needs benchmarks to evaluate, and eval.{protocol} names none")
    for name, row in config.get("efficiency", {}).items():
        if row.get("accuracy_of"):
            _known(f"efficiency.{name}.accuracy_of", row["accuracy_of"], trained)
    for key in ("explorer", "alignment"):
        for name in config.get(key, {}).get("models", []):
            _known(f"{key}.models", name, {**trained, **config.get("peers", {})})


def _known(key: str, name: str, runs: dict[str, Any]) -> None:
    if name not in runs:
        _refuse(key, f"no run is called '{name}'; there are {', '.join(runs)}")


def _check_cards(config: dict[str, Any]) -> None:
    """Refuse sources and benchmarks that have no card, or one that cannot be read."""
    sources = {f"sources, '{source}'": source for source in config["sources"]}
    for name, run in config["runs"].items():
        sources |= {f"runs.{name}.sources, '{source}'": source for source in run.get("sources", [])}
    for name, tune in config.get("fine_tune", {}).items():
        sources[f"fine_tune.{name}.source, '{tune['source']}'"] = tune["source"]
    benchmarks = {
        f"eval.{protocol}, '{card}'": card for protocol in PROTOCOLS for card in config["eval"].get(protocol, [])
    }
    benchmarks |= {f"{key}.card": config[key]["card"] for key in WITH_A_CARD if key in config}
    for names, load in ((sources, load_source), (benchmarks, load_card)):
        for key, name in names.items():
            try:
                load(name)  # type: ignore[operator]
            except UserError as error:
                raise UserError(f"study config, key {key}: {error}") from error


def check_evaluation_options(config: Mapping[str, Any]) -> None:
    """Refuse overrides that ``filip eval`` or their protocol does not have; name the key in the study."""
    places = {f"eval.overrides.{name}": (name, given) for name, given in config["eval"].get("overrides", {}).items()}
    for peer, entry in config.get("peers", {}).items():
        places |= {f"peers.{peer}.eval.{name}": (name, given) for name, given in entry.get("eval", {}).items()}
    if not any(given for _, given in places.values()):
        return
    # Only for a study that sets some options: these import PyTorch.
    from filip.eval.__main__ import EvaluationOptions
    from filip.eval.protocols import protocol_of

    shared = [field.name for field in fields(EvaluationOptions) if field.name not in SET_BY_THE_STUDY]
    for key, (protocol, given) in places.items():
        options = shared if protocol == ALL else [field.name for field in fields(protocol_of(protocol).settings)]
        for name in (text.split("=", 1)[0] for text in given):
            if name not in options:
                whose = "filip eval" if protocol == ALL else f"the protocol {protocol}"
                there = f"; {name} is one of all protocols: give it in {ALL}" if name in shared else ""
                raise UserError(
                    f"study config, key {key}: {whose} has no option {name!r} that a study may set; "
                    f"it has {', '.join(options) or 'none'}{there}"
                )


def check_accuracy_of(
    rows: Mapping[str, Mapping[str, Any]], training: Callable[[str], tuple[TrainConfig, list[str]]]
) -> None:
    """Refuse an efficiency row that shows the accuracy of a run which trains with other settings.

    rows: the study's ``efficiency``. training: the config and the sources of a row or a run, by its name.

    The settings of the row (interaction, dimension, precision, tokens kept) have to hold for the run as well; only the
    settings in ``NOT_COMPARED`` may differ. Raises UserError with the settings that differ.
    """
    for name, row in rows.items():
        run = row.get("accuracy_of")
        if not run:
            continue
        timed, trained = _settings(*training(name)), _settings(*training(run))
        different = [key for key in timed if timed[key] != trained[key]]
        if different:
            differences = "; ".join(f"{key} is {trained[key]} there and {timed[key]} here" for key in different)
            _refuse(f"efficiency.{name}.accuracy_of", f"'{run}' is trained with other settings: {differences}")


def _settings(config: TrainConfig, sources: list[str]) -> dict[str, Any]:
    """Return the settings of a training that have to be equal, flat: {"model.embed_dim": 256, …}."""
    from filip.train.provenance import learning_settings

    settings = learning_settings(config)
    flat = {key: value for key, value in settings.items() if key not in NOT_COMPARED}
    flat["data.sources"] = sources
    if flat["model.interaction"] == "pooled":
        flat["token_keep_ratio"] = None  # one vector per image leaves no tokens to keep
    return flat
