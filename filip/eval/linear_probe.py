"""Linear probe: ``python -m filip.eval.linear_probe model=M root=DIR cards=[…] out=FILE.json``.

The encoder is frozen; an image is the mean of its patch tokens; a logistic regression by L-BFGS (at most 1,000
iterations, scikit-learn's objective, on the model's device) is fitted on the training split and tested on the test
split. A benchmark without a training split is cross-validated on its test split, and the result says so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.command import option, run_command
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.encode_set import Source, encoded_batches, size_note
from filip.eval.encoders import Encoder
from filip.eval.features import FeatureStore
from filip.eval.formats import open_set
from filip.eval.logistic import Classifier, fit
from filip.eval.options import EvalOptions, skipped_entry
from filip.eval.outcomes import Record, write_outcomes
from filip.eval.scorer import scorer_for
from filip.eval.zero_shot import measure, outcomes
from filip.files import write_json
from filip.progress import say


@dataclass
class LinearProbe(EvalOptions):
    regularisation: float = option(
        1.0, "scikit-learn's C, the inverse strength of the L2 penalty (paper: open)"
    )
    iterations: int = option(1000, "at most this many of L-BFGS", at_least=1)
    folds: int = option(5, "of the cross-validation where there is no training split", at_least=2)


def main(config: LinearProbe) -> None:
    """Accuracy of a linear classifier on frozen features, written as JSON."""
    cards, skipped = config.load_cards("classification")
    encoder = config.encoder()
    store = config.store(encoder)
    tasks = {}
    record: Record = {}
    for card in cards:
        tasks[card.name] = probe(encoder, card, config, record, store)
        task = tasks[card.name]
        say(
            f"{card.name}: {card.metric} {100 * task['value']:.1f} % of {task['n']:,} images ({task['protocol']})"
        )
    header = config.result_header(encoder)
    write_outcomes(config.out, record)
    write_json(
        config.out,
        {**header, "regularisation": config.regularisation, "tasks": tasks, **skipped_entry(skipped)},
    )


def probe(
    encoder: Encoder,
    card: BenchmarkCard,
    config: LinearProbe,
    record: Record | None = None,
    store: FeatureStore | None = None,
) -> dict[str, Any]:
    """Fit and test on one benchmark. The numbers of the result file for it, as zero-shot's."""
    test = open_set(card, config.root)
    names = match_classes(card, test.classes or [])
    training = training_card(card, config.root)
    batches = (config.batch_size, config.workers)
    # Zero-shot goes through the same images: what one pass makes is kept for both. A training split is probed only.
    source = Source(
        test, card.name, *batches, card, config.root, with_probe=True, another_follows=training is not None
    )
    features, labels, keys, clusters = _features(encoder, source, store)
    if training is None:
        scores, protocol = _cross_validated(encoder, features, labels, len(names), config)
    else:
        train = open_set(training, config.root)
        if match_classes(card, train.classes or []) != names:
            raise UserError(f"{card.name}: the training and the test split number their classes differently")
        source = Source(train, f"{card.name}, training split", *batches, training, config.root)
        fitted = _fit(encoder, *_features(encoder, source, store)[:2], config)
        scores = fitted.log_probabilities(features, len(names))
        protocol = f"trained on {len(train):,} images of the training split"
    result = measure(card, scores, labels, names, clusters)
    if record is not None:
        record[card.name] = outcomes(keys, clusters, scores, labels)
    return {**result, "protocol": protocol, "split": card.split, "note": size_note(card, len(labels))}


def training_card(card: BenchmarkCard, root: str | Path) -> BenchmarkCard | None:
    """The card of the training split, or None if its copy on disk has none (a layout may name it: ``train_split``)."""
    split = str(card.layout.options.get("train_split", "train"))
    if card.split == "all":
        return None
    if card.loader == "webdataset" and not (Path(root) / card.path / split / "nshards.txt").is_file():
        return None
    options = {k: v for k, v in card.layout.options.items() if k != "partition"}
    if "partition" in card.layout.options:
        options["partition"] = str(card.layout.options["partition"]).replace("Testing", "Training")
    return dataclasses.replace(card, layout=dataclasses.replace(card.layout, split=split, options=options))


def _features(
    encoder: Encoder, source: Source, store: FeatureStore | None
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """([n, width] float32, [n] int64, n keys, n clusters)."""
    features, labels = [], []
    keys: list[str] = []
    clusters: list[str] = []
    for vectors, batch in encoded_batches(source, scorer_for(encoder), store, "probe"):
        features.append(vectors)
        labels.append(batch.labels)
        keys += batch.keys
        clusters += batch.clusters
    if not features:  # of a job that only encodes a part, before the training split
        return torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), keys, clusters
    return torch.cat(features), torch.cat(labels), keys, clusters


def _fit(encoder: Encoder, features: Tensor, labels: Tensor, config: LinearProbe) -> Classifier:
    return fit(features, labels, config.regularisation, config.iterations, encoder.device)


def _cross_validated(
    encoder: Encoder, features: Tensor, labels: Tensor, classes: int, config: LinearProbe
) -> tuple[Tensor, str]:
    """Scores of each image from a classifier that was not fitted on it."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(config.folds, int(torch.bincount(labels)[torch.unique(labels)].min()))
    if folds < 2:
        raise UserError(
            "a linear probe needs a training split, or at least two images of every class to fold"
        )
    scores = torch.zeros(len(labels), classes, dtype=torch.float64)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels):
        fitted = _fit(encoder, features[train], labels[train], config)
        scores[test] = fitted.log_probabilities(features[test], classes).double()
    return scores, f"{folds}-fold cross-validation of the test split, which has no training split"


if __name__ == "__main__":
    run_command(main, LinearProbe)
