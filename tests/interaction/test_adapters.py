"""The engine in place of other libraries' scorers: their own functions give the same values and gradients."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction import adapters
from late_interaction.adapters import MultiVectorSymmetricLoss, colbert_scores, mean_colbert_scores
from tests.support.late_interaction_models import TOWER, tokenizer
from tests.support.processes import run_well

BACKENDS = ("reference", "tiled", "auto")


def batch(sign: int | None, queries: int = 5, groups: int = 5, ways: int = 2) -> tuple[Tensor, ...]:
    """Make unit tokens with masks and rubbish where they are masked; ``sign``: of every similarity, None: both."""
    generator = torch.Generator().manual_seed(3)

    def tokens(*shape: int) -> Tensor:
        result = torch.randn(*shape, 16, generator=generator)
        return F.normalize(result if sign is None else result.abs(), dim=-1)

    query, document = tokens(queries, 6), tokens(groups, ways, 9) * (1 if sign is None else sign)
    masks = [torch.rand(t.shape[:-1], generator=generator) < 0.6 for t in (query, document)]
    for mask in masks:
        mask[..., 2] = True
    query, document = (t.masked_fill(~mask[..., None], 7.0) for t, mask in zip((query, document), masks, strict=True))
    return query, document, *masks


def solve(score: Callable[..., Tensor], query: Tensor, document: Tensor, **options: Any) -> tuple[Tensor, ...]:
    """Return scores and both gradients for arbitrary weights of the scores."""
    query, document = query.detach().clone().requires_grad_(), document.detach().clone().requires_grad_()
    scores = score(query, document, **options)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(4))
    return scores.detach(), *torch.autograd.grad((scores * weights).sum(), (query, document))


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sign", [None, 1, -1])
@pytest.mark.parametrize("mean", [False, True])
def test_sentence_transformers_scores_and_gradients_are_ours(backend: str, sign: int | None, mean: bool) -> None:
    from sentence_transformers.multi_vector_encoder import scoring

    query, document, query_mask, document_mask = batch(sign)
    masks = {"queries_mask": query_mask, "documents_mask": document_mask}
    ours = mean_colbert_scores if mean else colbert_scores
    theirs = scoring.mean_colbert_scores if mean else scoring.colbert_scores
    result = solve(ours, query, document, backend=backend, **masks)
    assert result[0].shape == (5, 10) and result[0].dtype == torch.float32
    assert_same(result, solve(theirs, query, document, **masks))
    numbers = {name: mask.float() for name, mask in masks.items()}  # masks of numbers mean the same
    assert_same(solve(ours, query, document, **numbers), result)


def test_without_masks_rows_of_zeros_are_padding_as_in_sentence_transformers() -> None:
    from sentence_transformers.multi_vector_encoder import scoring

    query, document, query_mask, document_mask = batch(-1)
    query, document = query * query_mask[..., None], document * document_mask[..., None]
    assert_same(solve(colbert_scores, query, document), solve(scoring.colbert_scores, query, document))
    assert_same(solve(mean_colbert_scores, query, document), solve(scoring.mean_colbert_scores, query, document))


class Given(nn.Module):
    """A stand-in for an encoder: a batch is its embeddings."""

    skiplist: tuple[int, ...] = ()
    do_query_expansion = False

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return features


def columns(query: Tensor, document: Tensor, query_mask: Tensor, document_mask: Tensor) -> list[dict[str, Tensor]]:
    """Return the batch as the libraries' losses take it: the queries, then a column for each document of a query."""
    parts = [(query, query_mask), *((document[:, n], document_mask[:, n]) for n in range(document.shape[1]))]
    return [
        {"token_embeddings": tokens, "attention_mask": mask, "input_ids": torch.ones_like(mask, dtype=torch.int64)}
        for tokens, mask in parts
    ]


def loss_and_gradients(loss: Callable[..., Tensor], tensors: tuple[Tensor, ...], **more: Any) -> tuple[Tensor, ...]:
    query, document = (tensor.detach().clone().requires_grad_() for tensor in tensors[:2])
    value = loss(columns(query, document, *tensors[2:]), **more)
    value.backward()  # cached losses hook into it
    assert query.grad is not None and document.grad is not None
    return value.detach(), query.grad, document.grad


@pytest.mark.parametrize("sign", [None, -1])
@pytest.mark.parametrize("kind", ["", "Cached"])
def test_the_losses_of_sentence_transformers_take_the_scorer(sign: int | None, kind: str) -> None:
    from sentence_transformers.multi_vector_encoder import losses

    tensors = batch(sign)
    loss = getattr(losses, f"{kind}MultiVectorMultipleNegativesRankingLoss")
    options = {"mini_batch_size": 2, "score_mini_batch_size": 3}
    theirs = loss(Given(), **options)
    ours = loss(Given(), similarity_fct=colbert_scores, **options)
    assert_same(loss_and_gradients(ours, tensors), loss_and_gradients(theirs, tensors))
    assert ours.get_config_dict()["similarity_fct"].endswith("colbert_scores")  # what the model card says


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_the_symmetric_loss_has_both_directions(temperature: float) -> None:
    def by_definition(features: list[dict[str, Tensor]]) -> Tensor:
        query, *documents = (column["token_embeddings"].double() for column in features)
        masks = [column["attention_mask"] for column in features]
        i2t, t2i = [], []
        for i in range(len(query)):
            rows = query[i, masks[0][i]]
            for column, mask in zip(documents, masks[1:], strict=True):
                for j in range(len(column)):
                    products = rows @ column[j, mask[j]].T
                    for dim, scores in ((1, i2t), (0, t2i)):
                        count = products.shape[dim]
                        smooth = temperature and temperature * ((products / temperature).exp().sum(dim) / count).log()
                        scores.append((smooth if temperature else products.amax(dim)).mean())
        own = torch.arange(len(query))
        both = [20 * torch.stack(scores).view(len(query), -1) for scores in (i2t, t2i)]
        return (F.cross_entropy(both[0], own) + F.cross_entropy(both[1][:, : len(query)].T, own)) / 2

    ours = MultiVectorSymmetricLoss(Given(), temperature=temperature)
    found, expected = (loss_and_gradients(loss, batch(None)) for loss in (ours, by_definition))
    assert_same(found, (expected[0].float(), *expected[1:]))


def test_the_symmetric_loss_trains_in_the_trainer_of_sentence_transformers(tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoder, MultiVectorEncoderTrainer
    from sentence_transformers.multi_vector_encoder import MultiVectorEncoderTrainingArguments as Arguments
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(vocab_size=32, **TOWER)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = MultiVectorEncoder(str(tmp_path))
    pairs = Dataset.from_dict({"query": ["a red cat", "two dogs"], "document": ["the red cat .", "image : dogs"]})
    args = Arguments(str(tmp_path), max_steps=20, learning_rate=1e-3, logging_steps=1, report_to="none")
    trainer = MultiVectorEncoderTrainer(model, args, train_dataset=pairs, loss=MultiVectorSymmetricLoss(model))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert len(losses) == 20 and losses[-1] < 0.1 * losses[0]


# Score with a library before and after its door is opened: values and gradients are the same, and the engine's.
_DOORS = """
import sys, torch
from late_interaction import adapters
door, *scorers = sys.argv[1:]
generator = torch.Generator().manual_seed(0)
query = torch.rand(3, 4, 8, generator=generator).requires_grad_()
few, many = (torch.rand(*shape, 6, 8, generator=generator) for shape in ((3,), (3, 2)))
results = []
for opened in (False, True):
    if opened:
        getattr(adapters, door)()
        calls, scores = [], adapters._sums
        adapters._sums = lambda *a: calls.append(0) or scores(*a)
    for scorer in scorers:
        module, name, document = scorer.split(":")
        score = getattr(__import__(module, fromlist=[name]), name)
        documents = {"few": few, "many": many}[document]
        masks = torch.arange(4) < torch.tensor([[4], [2], [1]]), (torch.arange(6) < 5).expand(documents.shape[:-1])
        for given in [()] if "lpali" in module or "pairwise" in name and "pylate" in module else [(), masks]:
            value = score(query, documents, *given)
            results.append((value, *torch.autograd.grad(value.square().sum(), query)))
assert len(calls) == len(results) // 2, calls
for one, other in zip(results, results[len(results) // 2:]):
    torch.testing.assert_close(one, other)
"""
_SCORERS = {
    "sentence_transformers": ["util.similarity:maxsim:few", "util.similarity:maxsim_pairwise:few"],
    "pylate": [f"scores:colbert_{name}" for name in ("scores:few", "scores_pairwise:few", "kd_scores:many")],
    "colpali_engine": ["utils.maxsim:maxsim_inbatch:few", "utils.maxsim:maxsim_kd:many"],
}


@pytest.mark.parametrize("package", _SCORERS)
def test_a_library_scores_by_the_engine_after_one_line(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"pip install {package.replace('_', '-')}, in an environment of its own")
    scorers = [f"{package}.{scorer}" for scorer in _SCORERS[package]]
    run_well("-c", _DOORS, f"patch_{package}", *scorers)


def test_what_does_not_fit_is_named() -> None:
    query, document, *_ = batch(None)
    for queries, documents in ((query, document[..., :8]), (query, document[:1]), (query[:4], document[:2])):
        with pytest.raises(ValueError, match=r"embedding space|documents of [12] queries"):
            adapters.colbert_kd_scores(queries, documents)
    with pytest.raises(ImportError, match="textwrap has no colbert_scores: this version of late-interaction knows"):
        adapters._replace("textwrap", colbert_scores=colbert_scores)
