"""Ranks must agree before the first token is sent; what they then do is in ranks.py."""

import pytest
import torch

from filip.interaction import agreement


def calls(**changes: object) -> list[agreement.Call]:
    """Return the calls of three ranks with unequal batches, the last of which does something else."""
    tokens = torch.zeros(2, 3, 4), torch.zeros(5, 4)
    first, second = (agreement.describe("distributed_late_interaction", *tokens, texts) for texts in (2, 3))
    return [first, second, first._replace(**changes)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 5}, "disagree on the number of features: 4 on rank 0, 5 on rank 2; use one width"),
        ({"image_dtype": 0}, "the dtype of the image tokens: torch.float32 on rank 0, torch.float16 on rank 2"),
        ({"text_dtype": 1}, "the dtype of the text tokens: torch.float32 on rank 0, torch.bfloat16 on rank 2"),
        ({"exchange": 1}, "exchange: 'gather' on rank 0, 'ring' on rank 2; pass the same one"),
        ({"image_gradient": 1}, "image tokens need a gradient: no on rank 0, yes on rank 2; freeze a tower"),
        ({"text_gradient": 1}, "text tokens need a gradient: no on rank 0, yes on rank 2; freeze a tower"),
        ({"function": 3}, "different functions: distributed_late_interaction on rank 0, .* gather_ids on rank 2"),
    ],
)
def test_each_disagreement_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agreement._compare(calls(**changes))


def test_counts_may_differ() -> None:
    agreement._compare(calls(images=9, texts=1))
    assert len(agreement._MUST_AGREE) + len(("function", "valid", "images", "texts")) == len(agreement.Call())
