"""Every term of the loss: values and gradients against its definition in float64, and on several ranks."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

from filip.interaction import cached_backward
from filip.train.losses import TERMS, Loss, LossOutput
from filip.train.step import by_name, from_names
from tests.support.ranks import run_cases
from tests.train.loss_batches import Batch, random_batch, run, settings
from tests.train.loss_ranks import cases
from tests.train.loss_references import REFERENCES

SHAPES = {
    "a batch": {"counts": [6]},
    "one pair": {"counts": [1]},
    "one patch and one word": {"counts": [4], "n1": 1, "longest": 1},
    "positives of a group": {"counts": [7], "groups": 3, "seed": 1},
    "one group": {"counts": [3], "groups": 1},
    "ties": {"counts": [5], "ties": True, "seed": 2},
    "long captions": {"counts": [3], "n1": 2, "longest": 40, "seed": 3},
}


def assert_same(found: Tensor, expected: Tensor, batch: Batch) -> None:
    """Both scalars, and their gradients with respect to every leaf of the batch."""
    torch.testing.assert_close(found, expected)
    leaves = batch.leaves()
    gradients = [
        torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
        for value in (found, expected)
    ]
    for name, own, wanted in zip(leaves, *gradients, strict=True):
        torch.testing.assert_close(own, wanted, msg=lambda text, name=name: f"{name}: {text}")


def test_every_term_has_a_reference() -> None:
    assert set(TERMS) == set(REFERENCES)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("term", REFERENCES)
def test_a_term_is_its_definition(term: str, shape: str) -> None:
    batch = random_batch(term, **SHAPES[shape])  # type: ignore[arg-type]
    assert_same(run(term, batch).loss, REFERENCES[term](batch), batch)


@pytest.mark.parametrize("term", REFERENCES)
def test_without_soft_targets_only_the_own_pair_is_positive(term: str) -> None:
    batch = random_batch(term, [5], groups=2)
    hard = run(term, batch, soft_targets=False)
    batch.group = torch.arange(5)
    assert_same(hard.loss, REFERENCES[term](batch), batch)


def test_on_vectors_the_terms_are_those_of_open_clip() -> None:
    batch = random_batch("sigmoid", [6])
    vectors = batch.image_vector, batch.text_vector, batch.scale
    assert_same(run("pooled", batch).loss, ClipLoss()(*vectors), batch)
    assert_same(run("sigmoid", batch).loss, SigLipLoss()(*vectors, batch.parameters["sigmoid_bias"]), batch)


def test_the_sigmoid_counts_a_row_whose_best_text_is_a_positive() -> None:
    batch = random_batch("sigmoid", [6], groups=3)
    best = (batch.image_vector @ batch.text_vector.T).argmax(dim=1)
    expected = batch.positives()[torch.arange(6), best].double().mean()
    assert float(run("sigmoid", batch).metrics["accuracy/i2t"]) == pytest.approx(float(expected))


@pytest.mark.parametrize("term", REFERENCES)
def test_gradient_caching_changes_nothing(term: str) -> None:
    batch = random_batch(term, [2, 3, 1], groups=4)
    names: list[str] = []

    def encode(chunk: int) -> tuple[Tensor, ...]:
        tensors = by_name(batch.encoded(chunk))
        names[:] = tensors
        return tuple(tensors.values())

    def loss(*tensors: Tensor) -> LossOutput:
        encoded = from_names(dict(zip(names, tensors, strict=True)))
        return Loss({term: 1.0}, settings())(encoded, batch.group)

    found = cached_backward([0, 1, 2], encode, loss, Tensor.backward)
    expected = run(term, batch).loss
    torch.testing.assert_close(found.loss, expected.detach())
    leaves = batch.leaves()
    gradients = torch.autograd.grad(expected, list(leaves.values()), materialize_grads=True)
    for (name, leaf), wanted in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(
            leaf.grad, wanted.to(leaf.dtype), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Of all cases on that many ranks, which are spawned once."""
    return functools.cache(lambda ranks: run_cases(cases, ranks, tmp_path_factory.mktemp(f"{ranks}-ranks")))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks in (2, 4) for case in cases(ranks)])
def test_ranks_equal_one_process(failures: Callable[[int], dict[str, str]], ranks: int, case: str) -> None:
    assert not failures(ranks)[case], failures(ranks)[case]
