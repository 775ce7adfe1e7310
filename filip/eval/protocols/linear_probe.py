"""Linear probe.

The encoder is frozen; an image is the mean of its patch tokens; scikit-learn's logistic regression (L-BFGS, at most
1,000 iterations) is fitted on the training split and tested on the test split. Its penalty is chosen as CLIP's was, by
a sweep on a part of the training images that the others are not fitted on; the test images have no say. A benchmark
without a training split is cross-validated on its test split, and the result notes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from filip.cli.command import option
from filip.common.errors import UserError
from filip.eval.cards import BenchmarkCard, match_classes
from filip.eval.classification import measure, outcomes
from filip.eval.datasets import EvalSet
from filip.eval.encode_set import Context, size_note
from filip.eval.encoders import Encoder
from filip.eval.formats import open_set
from filip.eval.outcomes import Record
from filip.eval.protocols import Column, Numbers, Protocol, ReportTable
from filip.eval.scorer import scorer_for

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

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
    training = training_card(card, test)
    features, labels, keys, clusters = _features(encoder, context, test, card.name)
    if training is None:
        scores, protocol = _cross_validated(features, labels, len(names), settings)
    else:
        train = open_set(training, context.root)
        if match_classes(card, train.classes or []) != names:
            raise UserError(f"{card.name}: the training and the test split number their classes differently")
        known = _features(encoder, context, train, f"{card.name}, training split")
        fitted = _fit(*known[:2], settings)
        scores = log_probabilities(fitted, features, len(names))
        protocol = f"trained on {len(train):,} images of the training split, C = {fitted.C:g}"
    result = measure(card, scores, labels, names, clusters)
    record[card.name] = outcomes(keys, clusters, scores, labels)
    return {**result, "protocol": protocol, "split": card.split, "note": size_note(card, len(labels))}


def training_card(card: BenchmarkCard, test: EvalSet) -> BenchmarkCard | None:
    """Return the card of the training split, or None if ``test`` has none beside it (``train_split`` may name it)."""
    split = str(card.layout.options.get("train_split", "train"))
    layout = dataclasses.replace(card.layout, split=split)
    return dataclasses.replace(card, layout=layout) if split in test.others else None


def _features(
    encoder: Encoder, context: Context, data: EvalSet, title: str
) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Return ([n, width] float32, [n] int64, n keys, n clusters)."""
    features, labels = [], []
    keys: list[str] = []
    clusters: list[str] = []
    for vectors, batch in context.encoded(data, title, scorer_for(encoder), encoder.probe_features):
        features.append(vectors.cpu())
        labels.append(batch.labels)
        keys += batch.keys
        clusters += batch.clusters
    return torch.cat(features), torch.cat(labels), keys, clusters


def _classifier(features: Tensor, labels: Tensor, penalty: float, settings: LinearProbeSettings) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    # the default tolerance ends far from the minimum where the penalty is small
    classifier = LogisticRegression(C=penalty, max_iter=settings.iterations, tol=1e-6)
    return classifier.fit(features.double().numpy(), labels.numpy())


def log_probabilities(classifier: LogisticRegression, features: Tensor, classes: int) -> Tensor:
    """Return [n, classes] float64; a class that was never seen in training has -inf."""
    result = torch.full((len(features), classes), -torch.inf, dtype=torch.float64)
    logs = classifier.predict_log_proba(features.double().numpy())
    result[:, torch.from_numpy(classifier.classes_)] = torch.from_numpy(logs)
    return result


def _fit(features: Tensor, labels: Tensor, settings: LinearProbeSettings) -> LogisticRegression:
    """Fit a classifier with the given penalty, or the best of the sweep."""
    penalty = settings.regularisation or _swept(features, labels, settings)
    return _classifier(features, labels, penalty, settings)


def _swept(features: Tensor, labels: Tensor, settings: LinearProbeSettings) -> float:
    """Return the C that is right most often on a fifth of the images; 1 where a class has a single one."""
    from sklearn.model_selection import train_test_split

    counts = torch.bincount(labels)[torch.unique(labels)]
    if int(counts.min()) < 2 or len(labels) < 5 * len(counts):
        return 1.0
    fitted_on, held_out = train_test_split(torch.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    shares = {
        penalty: _classifier(features[fitted_on], labels[fitted_on], penalty, settings).score(
            features[held_out].double().numpy(), labels[held_out].numpy()
        )
        for penalty in SWEEP
    }
    return max(SWEEP, key=shares.__getitem__)  # the first of equally good ones


def _cross_validated(
    features: Tensor, labels: Tensor, classes: int, settings: LinearProbeSettings
) -> tuple[Tensor, str]:
    """Return scores of each image from a classifier that was not fitted on it."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(settings.folds, int(torch.bincount(labels)[torch.unique(labels)].min()))
    if folds < 2:
        raise UserError("a linear probe needs a training split, or at least two images of every class to fold")
    scores = torch.zeros(len(labels), classes, dtype=torch.float64)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(features, labels):
        fitted = _fit(features[train], labels[train], settings)
        scores[test] = log_probabilities(fitted, features[test], classes)
    return scores, f"{folds}-fold cross-validation of the test split, which has no training split"


PROTOCOL = Protocol(
    "linear probe",
    ("classification",),
    run,
    LinearProbeSettings,
    ReportTable("Linear probe (accuracy, %)", (Column("{metric}", outcome="/{metric}", headline=True),), average=True),
    note="A logistic regression on the mean patch token of the frozen encoder.",
    on_request=True,  # it trains
)
