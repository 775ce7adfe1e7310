"""The work of each rank of test_zero.py: one optimiser step under DeepSpeed ZeRO against one process."""

import functools
import os
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from filip.interaction import (
    ContrastiveOutput,
    cached_backward,
    contrastive_loss,
    distributed_late_interaction,
    gather_ids,
    late_interaction,
)
from tests.support.ranks import Cases

PAIRS, MICRO = 4, 2  # pairs of a rank, and micro-batches they are cut into for gradient caching
LEARNING_RATE = 0.5
Batch = tuple[Tensor, Tensor, Tensor]


class Towers(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(5, 16), nn.Linear(4, 16)
        self.dropout = nn.Dropout(dropout)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))  # 0-dimensional parameters crash ZeRO

    def forward(self, batch: Batch) -> tuple[Tensor, ...]:
        image = F.normalize(self.dropout(self.image(batch[0])), dim=-1)
        text = F.normalize(self.dropout(self.text(batch[1])), dim=-1)
        return image, text, batch[2], self.log_scale.exp()


def micro_batches(rank: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(100 + rank)
    batches = []
    for _ in range(MICRO):
        lengths = torch.randint(1, 7, (PAIRS // MICRO,), generator=generator)
        text = torch.randn(int(lengths.sum()), 4, generator=generator)
        batches.append((torch.randn(len(lengths), 6, 5, generator=generator), text, lengths))
    return batches


def joined(batches: list[Batch]) -> Batch:
    image, text, lengths = (torch.cat(part) for part in zip(*batches, strict=True))
    return image, text, lengths


def loss_of_rank(image: Tensor, text: Tensor, lengths: Tensor, scale: Tensor, exchange: str) -> ContrastiveOutput:
    _, offset = gather_ids(lengths)
    similarity = distributed_late_interaction(image, text, lengths, exchange=exchange)
    return contrastive_loss(similarity, scale.mean(), offset=offset)


def engine_for(stage: int, accumulation: int, dropout: float) -> Any:
    import deepspeed

    model = Towers(dropout)
    config = {
        "train_micro_batch_size_per_gpu": PAIRS // accumulation,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": 0.0,  # the default is 1.0
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def step_under_zero(rank: int, stage: int, exchange: str, cached: bool, dropout: float) -> list[Tensor]:
    """Return parameters after one step of SGD on the batch of all ranks."""
    from deepspeed.runtime.zero import GatheredParameters

    engine = engine_for(stage, MICRO if cached else 1, dropout)
    batches = micro_batches(rank)
    torch.manual_seed(50 + rank)
    if cached:

        def backward(scalar: Tensor) -> None:
            engine.backward(scalar, scale_wrt_gas=False)
            engine.step()

        cached_backward(batches, engine, lambda *encoded: loss_of_rank(*encoded, exchange=exchange), backward)
    else:
        engine.backward(loss_of_rank(*engine(joined(batches)), exchange=exchange).loss)
        engine.step()
    with GatheredParameters(list(engine.module.parameters()), enabled=stage == 3):
        return [parameter.detach().clone() for parameter in engine.module.parameters()]


def step_of_one_process(ranks: int, dropout: float, cut: bool) -> list[Tensor]:
    """Take the same step, every rank's pairs encoded here with that rank's random state, on the reference."""
    model = Towers(dropout)
    encoded = []
    for rank in range(ranks):
        torch.manual_seed(50 + rank)
        batches = micro_batches(rank)
        encoded += [model(batch) for batch in (batches if cut else [joined(batches)])]
    image, text, lengths, scale = (torch.cat(part) for part in zip(*encoded, strict=True))
    similarity = late_interaction(image, text, lengths, backend="reference")
    contrastive_loss(similarity, scale.mean()).loss.backward()
    torch.optim.SGD(model.parameters(), lr=LEARNING_RATE).step()
    return [parameter.detach() for parameter in model.parameters()]


def cases(ranks: int) -> Cases:
    options = {
        "gather": ("gather", False, 0.0),
        "ring": ("ring", False, 0.0),
        "gather, gradient caching with dropout": ("gather", True, 0.3),
    }
    return {
        f"ZeRO-{stage}, {name}": partial(
            equals_one_process, stage=stage, exchange=exchange, cached=cached, dropout=dropout
        )
        for stage in (1, 2, 3)
        for name, (exchange, cached, dropout) in options.items()
    }


def equals_one_process(rank: int, ranks: int, *, stage: int, exchange: str, cached: bool, dropout: float) -> None:
    start_deepspeed(rank, ranks)
    before = [parameter.detach().clone() for parameter in Towers(0.0).parameters()]
    found = step_under_zero(rank, stage, exchange, cached, dropout)
    expected = step_of_one_process(ranks, dropout, cut=cached)
    for start, a, b in zip(before, found, expected, strict=True):
        assert float((b - start).abs().max()) > 1e-4  # the step moved it
        difference = float((a - b).abs().max() / (b - start).abs().max())
        assert difference < 1e-5, difference


@functools.cache
def start_deepspeed(rank: int, ranks: int) -> None:
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(ranks), DS_ACCELERATOR="cpu")
    import deepspeed

    # Else DeepSpeed compiles its shared-memory communication, half a minute that nothing here needs.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo")
