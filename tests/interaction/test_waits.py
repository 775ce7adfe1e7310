"""Where a step would wait for a GPU: with the lengths on the host, nowhere on one process."""

import pytest
import torch

from late_interaction import (
    Blockwise,
    contrastive_loss,
    late_interaction,
    operator,
    select_tokens,
    smooth_maximum,
    tiled,
)
from tests.interaction.problems import random_problem
from tests.support.waits import DeviceWaits


def test_it_sees_what_waits() -> None:
    numbers, host = torch.arange(4), torch.tensor([1, 2])
    with DeviceWaits(host) as seen:
        numbers.tolist()
        int(numbers.sum())
        numbers[numbers > 1]
        torch.repeat_interleave(numbers, numbers)
        assert len(seen.waits) == 4
        host.tolist()
        (host + 1).tolist()
        torch.tensor([3]).tolist()
        numbers[host]
        torch.repeat_interleave(numbers, numbers, output_size=6)
        assert len(seen.waits) == 4
        host.to(numbers.device).tolist()
        torch.tensor([3], device=numbers.device).tolist()
        assert len(seen.waits) == 6


@pytest.mark.parametrize("backend", ["tiled", "tiled on a GPU", Blockwise(smooth_maximum(0.1))])
@pytest.mark.parametrize("on_host", [True, False])
def test_only_lengths_are_waited_for(backend: str | Blockwise, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "tiled on a GPU":
        backend = "tiled"
        monkeypatch.setattr(tiled, "_by_sums", tiled._by_products)
    problem = random_problem(6, 5, [3, 1, 4, 1, 5, 9], 16)
    tokens = [tensor.requires_grad_() for tensor in problem[:2]]
    ids = torch.tensor([1, 2, 3, 1, 4, 5])
    seen = DeviceWaits(*([problem.text_lengths] if on_host else []))
    for name in ("run_forward", "run_backward"):
        monkeypatch.setattr(operator, name, seen.inside(getattr(operator, name)))
    with seen:
        chosen = select_tokens(*tokens, problem.text_lengths, 0.5) if on_host else problem
        similarity = late_interaction(*chosen, backend=backend)
        loss = contrastive_loss(similarity, torch.ones(1), ids=ids).loss
        loss.backward()
    assert seen.waits == ([] if on_host else ["cpu"])
