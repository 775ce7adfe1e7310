"""The work of each rank of test_loss_terms.py: a term on W ranks and its definition for the whole batch, compared."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.research.references import RESEARCH
from tests.support.ranks import Cases
from tests.train.loss_batches import Batch, random_batch, run
from tests.train.loss_references import CORE, cross_entropy, token_wise_matrices

REFERENCES = CORE | RESEARCH
PAIRS = [3, 2, 4, 1]  # pairs of each rank: unequal on purpose


def cases(ranks: int) -> Cases:
    return {
        f"{term}, {exchange}": partial(as_one_process, term=term, exchange=exchange)
        for term in REFERENCES
        for exchange in ("gather", "ring")
    } | {
        f"smooth maximum, {exchange}": partial(smooth_as_one_process, exchange=exchange)
        for exchange in ("gather", "ring")
    }


def smooth_as_one_process(rank: int, ranks: int, *, exchange: str) -> None:
    def definition(batch: Batch) -> Tensor:
        matrices = token_wise_matrices(batch, lambda s: 0.2 * torch.log(torch.exp(s / 0.2).mean(dim=-1)))
        return cross_entropy(*matrices, batch)

    options = {"token_maximum": "smooth", "token_temperature": 0.2}
    as_one_process(rank, ranks, term="token_wise", definition=definition, exchange=exchange, **options)


def as_one_process(
    rank: int, ranks: int, *, term: str, definition: Callable[[Batch], Tensor] | None = None, **changes: Any
) -> None:
    """Check value and gradients, of the tokens on the rank that owns them, of the scale as the mean."""
    counts = PAIRS[:ranks]
    batch, alone = (random_batch(term, counts, groups=sum(counts) - 2) for _ in range(2))
    # With unequal shares the mean over ranks is the mean over pairs only if each rank counts by its pairs.
    weight = counts[rank] * ranks / sum(counts)
    output = run(term, batch, rank, **changes)
    (output.loss * weight).backward()
    expected = (definition or REFERENCES[term])(alone)
    expected.backward()
    total = output.loss.detach() * weight / ranks
    dist.all_reduce(total)
    torch.testing.assert_close(total, expected.detach())
    pairs, tokens, further = batch.rows(rank)
    target = alone.leaves()
    for name, leaf in batch.leaves().items():
        whole = target[name].grad
        if whole is None:
            assert leaf.grad is None or not leaf.grad.any(), name  # DDP waits for one of every parameter
            continue
        assert leaf.grad is not None, name
        if name == "scale":
            dist.all_reduce(leaf.grad)
            torch.testing.assert_close(leaf.grad / ranks, whole)
        else:
            own = {"text": tokens, "further": further}.get(name, pairs)
            torch.testing.assert_close(leaf.grad[own] / ranks, whole[own])
