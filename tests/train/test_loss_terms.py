"""Every term of the loss: values and gradients against its definition in float64, and on several ranks."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from filip.models import ModelConfig
from filip.train.losses import TERMS, Loss
from filip.train.losses.term import BatchShape, TermOutput
from filip.train.step import by_name, from_names
from late_interaction import lengths as interaction_lengths
from late_interaction.grad_cache import cached_backward
from tests.support.ranks import run_cases
from tests.train.loss_batches import Batch, random_batch, run, settings
from tests.train.loss_ranks import REFERENCES, cases
from tests.train.loss_references import cross_entropy, token_wise_matrices

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
    """Compare both scalars, and their gradients with respect to every leaf of the batch."""
    torch.testing.assert_close(found, expected)
    leaves = batch.leaves()
    gradients = [
        torch.autograd.grad(value, list(leaves.values()), materialize_grads=True) for value in (found, expected)
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
def test_a_term_has_a_place_in_the_memory_plan(term: str) -> None:
    needs = [
        TERMS[term].memory(BatchShape(1024, 8192, 49, 18, 49, 18, 256, exchange)) for exchange in ("gather", "ring")
    ]
    own_vectors = 1024 * 256 * 4
    assert own_vectors < needs[1] <= needs[0] < 64e9


@pytest.mark.parametrize("term", REFERENCES)
def test_without_soft_targets_only_the_own_pair_is_positive(term: str) -> None:
    batch = random_batch(term, [5], groups=2)
    hard = run(term, batch, soft_targets=False)
    batch.group = torch.arange(5)
    assert_same(hard.loss, REFERENCES[term](batch), batch)


@pytest.mark.parametrize("term", ["token_wise", "pooled"])
def test_labels_are_smoothed_only_on_request(term: str) -> None:
    batch = random_batch(term, [5])
    plain, smoothed = run(term, batch).loss, run(term, batch, label_smoothing=0.1).loss
    assert torch.equal(run(term, batch, label_smoothing=0.0).loss, plain) and not torch.equal(smoothed, plain)


def test_on_vectors_the_term_is_that_of_open_clip() -> None:
    batch = random_batch("pooled", [6])
    vectors = batch.image_vector, batch.text_vector, batch.scale
    assert_same(run("pooled", batch).loss, ClipLoss()(*vectors), batch)


@pytest.mark.parametrize("shape", ["a batch", "one patch and one word", "long captions", "positives of a group"])
def test_the_smooth_maximum_is_its_definition(shape: str) -> None:
    batch = random_batch("token_wise", **SHAPES[shape])  # type: ignore[arg-type]
    matrices = token_wise_matrices(batch, lambda s: 0.2 * torch.log(torch.exp(s / 0.2).mean(dim=-1)))
    result = run("token_wise", batch, token_maximum="smooth", token_temperature=0.2).loss
    assert_same(result, cross_entropy(*matrices, batch), batch)


def test_without_special_tokens_a_caption_is_its_words() -> None:
    batch, words = (random_batch("token_wise", [4], seed=5) for _ in range(2))
    captions = [caption[1:-1] if len(caption) > 2 else caption for caption in words.captions()]
    words.text = torch.cat(captions).detach().requires_grad_()
    words.lengths = torch.tensor([len(caption) for caption in captions])
    found = run("token_wise", batch, model=ModelConfig(exclude_special_tokens=True))
    assert float(found.loss.detach()) == pytest.approx(float(run("token_wise", words).loss.detach()))
    assert len(words.text) < len(batch.text)


def test_no_tensor_holds_all_tokens_against_all_tokens() -> None:
    batch = random_batch("token_wise", [24], n1=16, longest=12)
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                largest = max(largest, found.numel())
            return found

    limit = 1 << 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interaction_lengths, "_TILE_CPU", limit)
        with Sizes():
            run("token_wise", batch, token_maximum="smooth").loss.backward()
    tokens = max(batch.image.numel(), batch.text.numel())
    assert largest <= max(2 * limit, 2 * tokens) < len(batch.image) * 16 * int(batch.lengths.sum()) / 2


@pytest.mark.parametrize("term", REFERENCES)
def test_gradient_caching_changes_nothing(term: str) -> None:
    batch = random_batch(term, [2, 3, 1], groups=4)
    names: list[str] = []

    def encode(chunk: int) -> tuple[Tensor, ...]:
        tensors = by_name(batch.encoded(chunk))
        names[:] = tensors
        return tuple(tensors.values())

    def loss(*tensors: Tensor) -> TermOutput:
        encoded = from_names(dict(zip(names, tensors, strict=True)))
        return Loss({term: 1.0}, settings())(encoded, batch.group, captions=(batch.ids, batch.lengths))

    found = cached_backward([0, 1, 2], encode, loss, Tensor.backward)
    expected = run(term, batch).loss
    torch.testing.assert_close(found.loss, expected.detach())
    leaves = batch.leaves()
    gradients = torch.autograd.grad(expected, list(leaves.values()), materialize_grads=True)
    for (name, leaf), wanted in zip(leaves.items(), gradients, strict=True):
        torch.testing.assert_close(leaf.grad, wanted.to(leaf.dtype), msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, str]]:
    """Return the failures of all cases on that many ranks, which are spawned once."""
    return functools.cache(lambda ranks: run_cases(cases, ranks, tmp_path_factory.mktemp(f"{ranks}-ranks")))


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks in (2, 4) for case in cases(ranks)])
def test_ranks_equal_one_process(failures: Callable[[int], dict[str, str]], ranks: int, case: str) -> None:
    assert not failures(ranks)[case], failures(ranks)[case]
