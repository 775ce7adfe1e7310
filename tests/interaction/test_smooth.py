"""The native smooth maximum: its bits, its limits, what it says. Its digits are those of test_fuzz.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from late_interaction import SmoothMaximum, late_interaction, native, smooth_blocks
from late_interaction.packing import Tokens
from tests.interaction.problems import Problem, random_lengths, random_problem, solve, upstream

if native.unavailable_reason():
    pytest.skip(native.unavailable_reason(), allow_module_level=True)


@pytest.fixture(autouse=True)
def no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(smooth_blocks, "forward")


@pytest.mark.parametrize("pairs", [64, 256, pytest.param(1024, marks=pytest.mark.slow)])
def test_many_threads_share_the_backward_and_its_bits_do_not_depend_on_their_number(pairs: int, threads: None) -> None:
    image, text, lengths = random_problem(pairs, 49, random_lengths(pairs, 4, 36), 24)
    tokens = Tokens(image, text, lengths.tolist(), temperature=0.05)
    grads = upstream(torch.Size([pairs, pairs]))
    least = 7 if pairs == 64 else 26 if native.isa_for(image) == "avx2" else 28
    alone = native.backward(tokens, grads, ())
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        assert all(map(torch.equal, alone, native.backward(tokens, grads, ()))), count
        assert native.units() >= least
    for side in (0, 1):
        assert torch.equal(native.backward(tokens, grads, (), (side == 0, side == 1))[side], alone[side])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_shows(value: float) -> None:
    problem = random_problem(3, 4, [2, 3], 8)
    problem.image_tokens[1, 2, 3] = value
    result = late_interaction(*problem, maximum=SmoothMaximum(0.05))
    for similarity in result:
        assert not similarity[1].isfinite().any() and similarity[[0, 2]].isfinite().all()


def test_a_temperature_has_to_be_positive() -> None:
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature must be positive"):
            SmoothMaximum(wrong)


def test_collapsed_and_opposite_tokens_keep_their_digits(isa: str) -> None:
    """All tokens equal: the smooth maximum is their cosine itself. All opposite: it is as exact."""
    one = F.normalize(torch.ones(1, 64), dim=-1)

    def tokens(count: int, sign: float = 1.0) -> Tensor:
        return sign * one.expand(count, 64).contiguous()

    for sign in (1.0, -1.0):
        problem = Problem(tokens(6).view(2, 3, 64), tokens(9, sign), torch.tensor([4, 5]))
        result = solve(problem, maximum=SmoothMaximum(0.02))
        assert (result.i2t - sign).abs().max() < 1e-6 and (result.t2i - sign).abs().max() < 1e-6
        assert result.grad_image.isfinite().all() and result.grad_text.isfinite().all()
