"""Multinomial logistic regression on the device, with the objective of scikit-learn's ``LogisticRegression``.

    C * (sum of the cross-entropies) + |W|^2 / 2, the biases unpenalised, by L-BFGS

divided by C times the number of images. Two classes have one weight vector, as scikit-learn has it. The features
are gone through in blocks, so that ImageNet's 1.28 M images times 1,000 classes are never in memory at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 65_536  # images in a block


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier.

    seen: [k] int64, the classes that there were images of. weight: [k, width] and bias: [k].
    """

    seen: Tensor
    weight: Tensor
    bias: Tensor

    def log_probabilities(self, features: Tensor, classes: int) -> Tensor:
        """Return [n, classes] on the CPU; a class that was never seen in training has -inf."""
        result = torch.full((len(features), classes), -torch.inf, dtype=self.weight.dtype)
        for start in range(0, len(features), _ROWS):
            part = features[start : start + _ROWS].to(self.weight)
            scores = torch.log_softmax(part @ self.weight.T + self.bias, dim=1)
            result[start : start + _ROWS, self.seen.cpu()] = scores.cpu()
        return result


def fit(
    features: Tensor,
    labels: Tensor,
    inverse_penalty: float = 1.0,
    iterations: int = 1000,
    device: str = "cpu",
    tolerance: float = 1e-6,
) -> Classifier:
    """Fit a classifier.

    features: [n, width] floating point; labels: [n] int64, of two or more classes. inverse_penalty: scikit-learn's C.
    iterations: at most this many of L-BFGS; it stops where no gradient of the mean objective is above ``tolerance``.
    On the CPU in float64, elsewhere in float32. ValueError if all labels are equal.
    """
    seen, target = torch.unique(labels, return_inverse=True)
    if len(seen) < 2:
        raise ValueError("a classifier needs images of two classes or more")
    dtype = torch.float64 if torch.device(device).type == "cpu" else torch.float32
    features, target = features.to(device), target.to(device)  # the blocks are widened, not the whole
    binary = len(seen) == 2
    rows = 1 if binary else len(seen)
    parameters = torch.zeros(rows, features.shape[1] + 1, dtype=dtype, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    penalty = 1.0 / (inverse_penalty * len(features))

    @torch.no_grad()
    def objective() -> Tensor:
        weight, bias = parameters[:, :-1], parameters[:, -1]
        total = 0.5 * penalty * weight.square().sum()
        gradient = torch.cat([penalty * weight, torch.zeros_like(bias)[:, None]], dim=1)
        for start in range(0, len(features), _ROWS):
            part = features[start : start + _ROWS].to(dtype)
            truth = target[start : start + _ROWS]
            scores = part @ weight.T + bias
            if binary:
                scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
            logs = torch.log_softmax(scores, dim=1)
            total -= logs.gather(1, truth[:, None]).sum() / len(features)
            error = logs.exp()
            error[torch.arange(len(truth), device=error.device), truth] -= 1
            error = error[:, 1:] if binary else error
            gradient[:, :-1] += error.T @ part / len(features)
            gradient[:, -1] += error.sum(0) / len(features)
        parameters.grad = gradient
        return total

    optimizer.step(objective)
    weight, bias = parameters.detach()[:, :-1], parameters.detach()[:, -1]
    if binary:
        weight = torch.cat([torch.zeros_like(weight), weight])
        bias = torch.cat([torch.zeros_like(bias), bias])
    return Classifier(seen, weight, bias)
