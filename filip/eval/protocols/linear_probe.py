"""Linear probe.

The encoder is frozen; an image is the mean of its patch tokens; a logistic regression by L-BFGS (at most 1,000
iterations, scikit-learn's objective, on the model's device) is fitted on the training split and tested on the test
split. Its penalty is chosen as CLIP's was, by a sweep on a part of the training images that the others are not fitted
on; the test images have no say. A benchmark without a training split is cross-validated on its test split, and the
result notes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from filip import citations
from filip.command import option
from filip.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.classification import measure, outcomes
from filip.eval.encode_set import Context, ImageSource, encoded_batches, size_note
from filip.eval.encoders import Encoder
from filip.eval.features import FeatureStore
from filip.eval.formats import open_set
from filip.eval.logistic import Classifier, fit
from filip.eval.outcomes import Record
from filip.eval.protocols import Column, Numbers, Protocol, ReportTable
from filip.eval.scorer import scorer_for

SWEEP = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)


@dataclass
class LinearProbeSettings:
    regularisation: float | None = option(
        None,
        "scikit-learn's C, the inverse of the L2 penalty; null = the best on a fifth of the training images",
        above=0,
    )
    iterations: int = option(1000, "most iterations of L-BFGS", at_least=1)
    folds: int = option(5, "folds of the cross-validation where there is no training split", at_least=2)


def run(
    encoder: Encoder, card: BenchmarkCard, settings: LinearProbeSettings, context: Context, record: Record
) -> Numbers:
    """Fit and test on one benchmark. Return its numbers for the result file, in the form of zero-shot's."""
    test = open_set(card, context.root)
    names = match_classes(card, test.classes or [])
    training = training_card(card, context.root)
    # Zero-shot goes through the same images: one pass keeps features for both. A training split is only probed.
    source = context.source(test, card, with_probe=True, another_follows=training is not None)
    features, labels, keys, clusters = _features(encoder, source, context.store)
    if training is None:
        scores, protocol = _cross_validated(encoder, features, labels, len(names), settings)
    else:
        train = open_set(training, context.root)
        if match_classes(card, train.classes or []) != names:
            raise UserError(f"{card.name}: the training and the test split number their classes differently")
        source = context.source(train, training, f"{card.name}, training split")
        fitted, penalty = _fit(encoder, *_features(encoder, source, context.store)[:2], settings)
        scores = fitted.log_probabilities(features, len(names))
        protocol = f"trained on {len(train):,} images of the training split, C = {penalty:g}"
    result = measure(card, scores, labels, names, clusters)
    record[card.name] = outcomes(keys, clusters, scores, labels)
    return {**result, "protocol": protocol, "split": card.split, "note": size_note(card, len(labels))}


def training_card(card: BenchmarkCard, root: str | Path) -> BenchmarkCard | None:
    """Return the card of the training split, or None if its copy on disk has none (``train_split`` may name it)."""
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
    encoder: Encoder, source: ImageSource, store: FeatureStore | None
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Return ([n, width] float32, [n] int64, n keys, n clusters)."""
    features, labels = [], []
    keys: list[str] = []
    clusters: list[str] = []
    for vectors, batch in encoded_batches(source, scorer_for(encoder), store, "probe"):
        features.append(vectors)
        labels.append(batch.labels)
        keys += batch.keys
        clusters += batch.clusters
    if not features:  # only in a job that encodes a part, before the training split
        return torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), keys, clusters
    return torch.cat(features), torch.cat(labels), keys, clusters


def _fit(encoder: Encoder, features: Tensor, labels: Tensor, settings: LinearProbeSettings) -> tuple[Classifier, float]:
    """Return the classifier and its C."""
    penalty = settings.regularisation or _swept(encoder, features, labels, settings)
    return fit(features, labels, penalty, settings.iterations, encoder.device), penalty


def _swept(encoder: Encoder, features: Tensor, labels: Tensor, settings: LinearProbeSettings) -> float:
    """Return the C that is right most often on a fifth of the images; 1 where a class has a single one."""
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(labels)[torch.unique(labels)]
    if int(counts.min()) < 2 or len(labels) < 5 * len(counts):
        return 1.0
    fitted_on, held_out = train_test_split(torch.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    best, most = 1.0, -1
    for penalty in SWEEP:
        fitted = fit(features[fitted_on], labels[fitted_on], penalty, settings.iterations, encoder.device)
        scores = fitted.log_probabilities(features[held_out], int(labels.max()) + 1)
        if (right := int((scores.argmax(1).cpu() == labels[held_out]).sum())) > most:
            best, most = penalty, right
    return best


def _cross_validated(
    encoder: Encoder, features: Tensor, labels: Tensor, classes: int, settings: LinearProbeSettings
) -> tuple[Tensor, str]:
    """Return scores of each image from a classifier that was not fitted on it."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(settings.folds, int(torch.bincount(labels)[torch.unique(labels)].min()))
    if folds < 2:
        raise UserError("a linear probe needs a training split, or at least two images of every class to fold")
    scores = torch.zeros(len(labels), classes, dtype=torch.float64)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels):
        fitted, _ = _fit(encoder, features[train], labels[train], settings)
        scores[test] = fitted.log_probabilities(features[test], classes).double()
    return scores, f"{folds}-fold cross-validation of the test split, which has no training split"


PROTOCOL = Protocol(
    "linear probe",
    ("classification",),
    run,
    LinearProbeSettings,
    ReportTable("Linear probe (accuracy, %)", (Column("{metric}", outcome="/{metric}", headline=True),), average=True),
    note="A logistic regression on the mean patch token of the frozen encoder.",
    on_request=True,  # it trains
    in_parts=True,
    citation=(citations.CLIP, citations.FILIP),
)
