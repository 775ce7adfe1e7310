"""Run in each rank by test_zero.py: LAMB steps under every ZeRO stage against LAMB on whole parameters."""

import json
import os
import sys

import torch
from torch import Tensor, nn

from filip.errors import UserError
from filip.train import zero_layout
from filip.train.lamb import Lamb
from filip.train.ranks import Ranks, start_ranks
from filip.train.zero_layout import bind_lamb


class Odd(nn.Module):
    """A model of sizes that no number of ranks divides, scalars, a parameter of zeros, one larger than all others."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5]))
        self.first = nn.Linear(7, 13)
        self.table = nn.Parameter(torch.randn(11, 13))
        self.zeros = nn.Parameter(torch.zeros(13))
        self.second = nn.Linear(13, 5, bias=False)
        self.shift = nn.Parameter(torch.tensor([0.25]))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x) + self.zeros) @ self.table.T @ self.table
        return self.scale * self.second(hidden) + self.shift


def groups(model: nn.Module) -> list[dict]:
    decaying = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": decaying, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]


def make() -> tuple[Odd, Lamb]:
    torch.manual_seed(0)
    model = Odd()
    return model, Lamb(groups(model), lr=0.1)


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(8, 7, generator=generator), torch.randn(8, 5, generator=generator)


def plain(steps: int, world_size: int) -> dict[str, Tensor]:
    model, lamb = make()
    for step in range(steps):
        lamb.zero_grad()
        for rank in range(world_size):
            x, y = batch(step, rank)
            ((model(x) - y).square().mean() / world_size).backward()
        lamb.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def under_zero(stage: int, steps: int, rank: int, world_size: int, bind: bool) -> dict[str, Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model, lamb = make()
    settings = {
        "train_micro_batch_size_per_gpu": 8, "train_batch_size": 8 * world_size, "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True, "steps_per_print": 10**9,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20},
    }  # fmt: skip
    engine, *_ = deepspeed.initialize(model=model, optimizer=lamb, config=settings, dist_init_required=False)
    if bind:
        bind_lamb(engine, lamb)
    for step in range(steps):
        x, y = batch(step, rank)
        engine.backward((engine(x) - y).square().mean())
        engine.step()
    result = {}
    for name, parameter in engine.module.named_parameters():
        whole = safe_get_full_fp32_param(parameter)
        result[name] = (parameter if whole is None else whole).detach().clone().view(-1)
    return result


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest difference of any parameter, relative to the parameter's largest element."""
    return max(
        float((found[n].view(-1) - e.view(-1)).abs().max() / e.abs().max().clamp(min=1e-3)) for n, e in expected.items()
    )


def refuses_a_lost_stretch(stage: int, ranks: Ranks) -> float:
    """Return 1 if every rank refuses LAMB where the last rank does not find the first stretch of one of its tensors."""
    whole = zero_layout._layout

    def incomplete(flat, parameters, names, stretches, group):  # type: ignore[no-untyped-def]
        lost = ranks.rank == ranks.world_size - 1
        return whole(flat, parameters, names, stretches[1:] if lost else stretches, group)

    zero_layout._layout = incomplete
    try:
        under_zero(stage, 1, ranks.rank, ranks.world_size, bind=True)
    except UserError as error:
        return float("elements of" in str(error))
    finally:
        zero_layout._layout = whole
    return 0.0


def main() -> None:
    ranks = start_ranks()
    expected = plain(5, ranks.world_size)
    errors = {
        f"stage {stage}{'' if bind else ' unbound'}": error(
            under_zero(stage, 5, ranks.rank, ranks.world_size, bind), expected
        )
        for stage, bind in ((0, True), (1, True), (2, True), (3, True), (1, False), (3, False))
    }
    errors |= {f"stage {stage} refused": refuses_a_lost_stretch(stage, ranks) for stage in (1, 3)}
    if ranks.is_main:
        print("RESULT", json.dumps(errors), flush=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
