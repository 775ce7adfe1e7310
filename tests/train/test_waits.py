"""A training step on one process waits for the GPU nowhere between its batch and its gradients."""

import pytest
import torch

from filip.interaction import dispatch
from filip.models import build_model, load_preset
from filip.train.engine import to_device
from filip.train.losses import Loss, resolve_weights
from tests.support.waits import GPU, DeviceWaits
from tests.train.loss_batches import settings


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_step_does_not_wait_for_the_device(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(load_preset("tiny"))
    lengths = torch.tensor([5, 3, 7])
    size = model.image_size
    batch = {"pixels": torch.zeros(3, 3, size, size), "ids": torch.ones(3, 7, dtype=torch.int64), "lengths": lengths}
    loss = Loss(resolve_weights({"token_wise": 1.0}, "token_wise"), settings(token_keep_ratio=share, backend="tiled"))
    seen = DeviceWaits(lengths)
    monkeypatch.setattr(dispatch, "run_backward", seen.inside(dispatch.run_backward))
    with seen:
        moved = to_device(batch, GPU, None)
        encoded = model(moved["pixels"], moved["ids"], moved["lengths"])
        loss(encoded, torch.arange(3)).loss.backward()
    assert seen.waits == []
