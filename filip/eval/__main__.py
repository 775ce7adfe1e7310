"""Everything that fits, in one command: ``filip eval model=M data=FOLDER_OR_CARDS``.

    filip eval model=filip.safetensors data=pictures                  # a folder of classes
    filip eval model=hf:openai/clip-vit-base-patch32 data=pairs.csv   # columns image and caption
    filip eval model=filip.safetensors data=[cifar10,flickr30k,sugar_crepe_swap_att] root=/data/benchmarks

Each data set is opened before anything is encoded. Results are kept as ``<out>/<protocol>/<data set>.json``, with the
outcome of each image beside them; what is there already, for the same model and settings, is not run again.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filip.command import MISSING, option, run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard
from filip.eval.encoders import Encoder
from filip.eval.features import ShardEncodedError, read_shard
from filip.eval.opening import MISSING_SETS, check_sets
from filip.eval.options import FEATURES, FEATURES_GB, ModelOptions, result_header, store_of
from filip.eval.outcomes import Record, outcomes_file, write_outcomes
from filip.eval.own_data import cards_of
from filip.eval.protocols import IN_PARTS, PROTOCOLS, UNASKED, Settings
from filip.eval.table import as_text, measures
from filip.eval.zero_shot import ENSEMBLES
from filip.files import write_json
from filip.progress import say


@dataclass
class Evaluation(ModelOptions):
    data: list[str] = option(
        MISSING, "folders, tables (CSV, JSON lines, Parquet) or benchmark cards, e.g. [cifar10,mine/]"
    )
    root: str = option(".", "folder below which the data sets of cards lie")
    out: str = option("", "folder for the results; results/eval/<model> if empty", writes="folder")
    protocols: list[str] = option(
        list(UNASKED),
        "of those that fit the data; add linear_probe to fit classifiers",
        choices=tuple(PROTOCOLS),
    )
    prompts: str = option("eval/prompts.yaml", "prompt ensembles, or one prompt such as 'a photo of a {c}.'")
    ensemble: str = option(
        "score",
        "score: mean of scores over prompts; embedding: mean vector (pooled models)",
        choices=ENSEMBLES,
    )
    loader: str | None = option(None, "layout of the cards to use instead of their default")
    missing: str = option(
        "stop", "a data set that is not there: stop; or skip: evaluate the others", choices=MISSING_SETS
    )
    batch_size: int = option(64, "images at a time", at_least=1)
    workers: int = option(0, "processes that decode images", at_least=0)
    features: str = option("", FEATURES, writes="folder")
    features_gb: float = option(
        FEATURES_GB, "what that folder may hold; the sets used longest ago are removed", at_least=0
    )
    shard: str = option(
        "", "encode this part of the images only, e.g. 3/8, into features=; then run without it"
    )
    overwrite: bool = option(False, "run again what is there already")


def main(config: Evaluation) -> None:
    """Evaluate a model on data of your own or on benchmarks: every protocol that fits, and one table."""
    settings = Settings(config.root, config.prompts, config.ensemble, config.batch_size, config.workers)
    if config.shard:
        read_shard(config.shard)
        if unfit := [name for name in config.protocols if name not in IN_PARTS]:
            config.protocols = [name for name in config.protocols if name in IN_PARTS]
            say(
                f"shard={config.shard}: {', '.join(unfit)} keep no features; they are left to the run without shard="
            )
    jobs = planned(config)
    out = Path(config.out or Path("results") / "eval" / model_name(config))
    encoder: Encoder | None = None
    results: list[dict[str, Any]] = []
    for protocol, card in jobs:
        file = out / protocol / f"{card.name}.json"
        request = _request(config, settings, card)
        if not config.overwrite and (found := _done(file, request)) is not None:
            say(f"{file}: done before")
            results.append(found)
            continue
        if encoder is None:
            encoder = config.encoder()
            store = store_of(config, encoder, config.features, config.features_gb, config.shard)
            settings = replace(settings, store=store)
        record: Record = {}
        try:
            numbers = PROTOCOLS[protocol].run(encoder, card, settings, record)
        except ShardEncodedError:
            continue
        result = {
            **result_header(config, encoder),
            "protocol": protocol,
            "request": request,
            "ensemble": config.ensemble,
            "prompt_file": config.prompts,
            PROTOCOLS[protocol].key: {card.name: numbers},
        }
        write_outcomes(file, record)
        write_json(file, result)
        results.append(json.loads(file.read_text(encoding="utf-8")))
    if config.shard:
        print(f"part {config.shard} is in {config.features}; run the same without shard= when all parts are")
        return
    print(as_text([row for result in results for row in measures(result)]))
    print(f"\nresults: {out}")


def planned(config: Evaluation) -> list[tuple[str, BenchmarkCard]]:
    """(protocol, card) for all that fits. Opens each data set, so that a mistake stops before the first image.

    Raises UserError if nothing fits, a name occurs twice, or a data set is missing.
    """
    cards = [card for data in config.data for card in cards_of(data, config.loader)]
    names = [card.name for card in cards]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"data: two data sets are called {twice[0]!r}, and results are kept by name; rename one"
        )
    jobs = [(name, card) for card in cards for name in config.protocols if PROTOCOLS[name].kind == card.kind]
    if not jobs:
        raise UserError(
            f"data: none of the protocols {', '.join(config.protocols)} fits {', '.join(names) or 'nothing'}"
        )
    there, _ = check_sets(cards, config.root, config.missing)
    if not there:
        raise UserError(f"data: none of {', '.join(names)} is there")
    return [(protocol, card) for protocol, card in jobs if card in there]


def model_name(config: ModelOptions) -> str:
    """What the results of a model are kept under: readable, and safe as a folder."""
    own = Path(config.model).exists() and ":" not in config.model
    name = Path(config.model).stem if own else config.model
    name += "-tokens" if config.tokens else ""
    name += f"-{config.image_size}px" if config.image_size else ""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _request(config: Evaluation, settings: Settings, card: BenchmarkCard) -> dict[str, Any]:
    """What a result depends on; a result with another request is not taken for this one's."""
    weights = Path(config.model)
    stamp = weights.stat().st_mtime_ns if weights.is_file() else None
    chosen = {
        key: value for key, value in asdict(settings).items() if key not in ("batch_size", "workers", "store")
    }
    model = {key: getattr(config, key) for key in ("model", "image_size", "precision", "tokens")}
    return {**model, "weights_modified": stamp, **chosen, "layout": asdict(card.layout)}


def _done(file: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("request") == request and outcomes_file(file).is_file() else None


if __name__ == "__main__":
    run_command(main, Evaluation)
