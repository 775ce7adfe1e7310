"""Every backend that runs here, values and gradients, against the definition and the float64 reference."""

from __future__ import annotations

import pytest
import torch

from filip.interaction import (
    distributed_late_interaction,
    late_interaction,
    late_interaction_padded,
    pack_tokens,
    score,
)
from filip.interaction.backends import choose_backend
from tests.interaction.problems import (
    Problem,
    assert_close,
    by_definition,
    random_lengths,
    random_problem,
    solve,
    tied_problem,
    upstream,
)


def runs(backend: str) -> bool:
    try:
        choose_backend(torch.zeros(1, 1, 16), 1, backend)
    except ValueError:
        return False
    return True


BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not runs(name), reason=f"{name} cannot run here"))
    for name in ("reference", "tiled", "native")
]

SHAPES = {
    "one image token": (5, 1, [2, 7, 3], 16),
    "one text token": (4, 9, [1, 1, 1], 16),
    "one of each": (1, 1, [1], 16),
    "one pair": (1, 49, [18], 32),
    "all lengths": (2, 10, list(range(2, 78, 3)), 24),
    "rectangular": (11, 7, [5, 77, 2], 20),
    "odd features": (6, 49, random_lengths(9, 2, 20, seed=1), 37),
    "more than 256 image tokens": (2, 300, [4, 9], 16),
    "more than 256 text tokens": (2, 5, [300, 3], 16),
    "paper's geometry": (8, 49, random_lengths(8, 5, 30, seed=2), 256),
    "several tiles": (70, 50, random_lengths(40, 9, 12, seed=3) + [2, 40], 16),
}


def test_reference_is_the_definition() -> None:
    for problem in (random_problem(3, 4, [1, 5, 2], 6), tied_problem(3, 5, [4, 1, 6], 3)):
        assert_close(solve(problem, "reference", torch.float64), by_definition(problem), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SHAPES)
def test_float32(backend: str, name: str) -> None:
    problem = random_problem(*SHAPES[name])
    assert_close(solve(problem, backend), solve(problem, "reference", torch.float64), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_tokens_are_multiplied_exactly(backend: str, dtype: torch.dtype) -> None:
    if backend == "native" and dtype == torch.float16:
        pytest.skip("the native kernel has no float16; dispatch gives it to tiled")
    problem = random_problem(9, 49, random_lengths(12, 2, 30), 64)
    rounded = Problem(*(t.to(dtype) for t in problem[:2]), problem.text_lengths)
    found = solve(rounded, backend)
    assert found.i2t.dtype == torch.float32 and found.grad_image.dtype == dtype
    # Values to float32 rounding of the rounded tokens; gradients are returned in 16 bits.
    assert_close(found, solve(rounded, "reference", torch.float64), 2e-6, 2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lowest_index(backend: str) -> None:
    problem = tied_problem(6, 12, [1, 9, 20, 3, 9], 4)
    expected = by_definition(problem)
    assert_close(solve(problem, backend), expected, 1e-6)
    identical = Problem(problem.image_tokens[:1].expand(6, -1, -1), problem.text_tokens, problem.text_lengths)
    assert_close(solve(identical, backend), by_definition(identical), 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_similarities_are_not_floored(backend: str) -> None:
    problem = random_problem(4, 6, [2, 5, 31], 16)
    opposite = Problem(problem.image_tokens.abs(), -problem.text_tokens.abs(), problem.text_lengths)
    found = solve(opposite, backend)
    assert float(found.i2t.max()) < 0 and float(found.t2i.max()) < 0
    assert_close(found, solve(opposite, "reference", torch.float64), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_non_contiguous_inputs(backend: str) -> None:
    problem = random_problem(5, 8, [3, 6, 6], 32)
    image = problem.image_tokens.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    text = torch.stack([problem.text_tokens, problem.text_tokens], dim=1)[:, 1]
    assert not image.is_contiguous() and not text.is_contiguous()
    found = solve(Problem(image, text, problem.text_lengths), backend)
    assert_close(found, solve(problem, "reference", torch.float64), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_one_direction_or_side_is_differentiated(backend: str) -> None:
    problem = random_problem(3, 4, [2, 5], 16)
    image = problem.image_tokens.clone().requires_grad_()
    late_interaction(image, *problem[1:], backend=backend).i2t.sum().backward()
    expected = problem.image_tokens.double().requires_grad_()
    oracle = late_interaction(expected, problem[1].double(), problem[2], backend="reference")
    oracle.i2t.sum().backward()
    torch.testing.assert_close(image.grad, expected.grad.float(), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(
            late_interaction(*problem, backend=backend).t2i, oracle.t2i.float(), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("backend", ["reference", "tiled"])
def test_gradcheck_in_float64(backend: str) -> None:
    image, text, lengths = random_problem(2, 3, [1, 3], 4, seed=5)
    inputs = (image.double().requires_grad_(), text.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: late_interaction(x, y, lengths, backend=backend), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_rounds_nothing(backend: str) -> None:
    problem = random_problem(6, 9, [4, 7, 2], 32)
    plain = solve(problem, backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = solve(problem, backend)
    for a, b in zip(plain, inside, strict=True):
        assert a.dtype == b.dtype == torch.float32 and torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_takes_part_in_nothing(backend: str) -> None:
    problem = random_problem(4, 6, [3, 1, 5], 16)
    results = []
    for filler in (0.0, 1e4, float("nan")):
        padded = torch.full((3, 9, 16), filler)
        for j, text in enumerate(problem.text_tokens.split([3, 1, 5])):
            padded[j, : len(text)] = text
        padded.requires_grad_()
        similarity = late_interaction_padded(
            problem.image_tokens, padded, problem.text_lengths, backend=backend
        )
        (similarity.i2t.sum() + similarity.t2i.sum()).backward()
        assert padded.grad is not None
        beyond = torch.arange(9) >= problem.text_lengths[:, None]
        assert float(padded.grad[beyond].abs().max()) == 0
        results.append((similarity.i2t, similarity.t2i, padded.grad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    packed = late_interaction(*problem, backend=backend)
    assert torch.equal(packed.i2t, results[0][0]) and torch.equal(packed.t2i, results[0][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_the_batch_permutes_the_matrices(backend: str) -> None:
    problem = random_problem(7, 5, [3, 9, 1, 4, 9, 2], 32)
    rows, columns = torch.randperm(7), torch.randperm(6)
    texts = problem.text_tokens.split(problem.text_lengths.tolist())
    shuffled = Problem(
        problem.image_tokens[rows], torch.cat([texts[j] for j in columns]), problem.text_lengths[columns]
    )
    before, after = solve(problem, backend), solve(shuffled, backend)
    torch.testing.assert_close(after.i2t, before.i2t[rows][:, columns], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.t2i, before.t2i[rows][:, columns], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(before.i2t, before.t2i, atol=1e-2)  # two different matrices


@pytest.mark.parametrize("backend", BACKENDS)
def test_repeated_runs_agree_to_the_bit(backend: str) -> None:
    problem = random_problem(20, 49, random_lengths(20, 2, 30), 32)
    first, second = solve(problem, backend), solve(problem, backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["reference", "tiled", "auto"])
def test_a_nan_is_not_hidden(backend: str) -> None:
    """A model that has diverged must show it: the loss scaler of fp16 training watches for it."""
    image, text, lengths = random_problem(3, 4, [2, 5], 16)
    image[1] = float("nan")
    similarity = late_interaction(image, text, lengths, backend=backend)
    assert bool(similarity.i2t[1].isnan().all()) and bool(similarity.t2i[1].isnan().all())
    assert not bool(similarity.i2t[[0, 2]].isnan().any())


@pytest.mark.parametrize(
    ("image", "text", "lengths", "message"),
    [
        ((0, 4, 8), (6, 8), [2, 4], "empty batch"),
        ((2, 4, 8), (0, 8), [], "empty batch"),
        ((2, 0, 8), (6, 8), [2, 4], "no tokens"),
        ((2, 4, 8), (6, 8), [2, 0, 4], "at least one token"),
        ((2, 4, 8), (6, 8), [2, 3], "sum to 5"),
        ((2, 4, 8), (6, 16), [2, 4], "same embedding space"),
        ((2, 8), (6, 8), [2, 4], "image_tokens \\[images, n1, d\\]"),
    ],
)
def test_mistakes_are_named(
    image: tuple[int, ...], text: tuple[int, ...], lengths: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        late_interaction(torch.zeros(image), torch.zeros(text), torch.tensor(lengths, dtype=torch.int64))


def test_backend_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from filip.interaction import reference, tiled

    monkeypatch.delenv("FILIP_INTERACTION_BACKEND", raising=False)
    tokens = torch.zeros(2, 3, 16)
    assert choose_backend(tokens, 5, "reference") is reference
    assert choose_backend(tokens.double(), 5, "auto") is tiled
    monkeypatch.setenv("FILIP_INTERACTION_BACKEND", "reference")
    assert choose_backend(tokens, 5, "auto") is reference
    assert choose_backend(tokens, 5, "tiled") is tiled  # an explicit choice wins over the environment
    monkeypatch.setenv("FILIP_INTERACTION_BACKEND", "natve")
    with pytest.raises(ValueError, match="FILIP_INTERACTION_BACKEND='natve'"):
        choose_backend(tokens, 5, "auto")


def test_one_notice_when_the_fast_backend_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from filip.interaction import backends, tiled

    monkeypatch.delenv("FILIP_INTERACTION_BACKEND", raising=False)
    monkeypatch.setattr(backends, "_notices", set())
    monkeypatch.setattr(
        "filip.interaction.native.unavailable_reason", lambda tokens, longest: "no compiler here"
    )
    for _ in range(2):
        assert choose_backend(torch.zeros(2, 3, 16), 5) is tiled
    assert choose_backend(torch.zeros(2, 3, 16).half(), 5) is tiled
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "filip.interaction: no compiler here; using the tiled PyTorch backend, which is exact but slower"
    ]
    with pytest.raises(ValueError, match="'native' cannot run here: no compiler here; use 'tiled' or 'auto'"):
        choose_backend(torch.zeros(2, 3, 16), 5, "native")


def test_tokens_of_two_dtypes_meet_in_the_wider() -> None:
    problem = random_problem(3, 4, [2, 5], 16)
    image = problem.image_tokens.bfloat16()
    mixed = late_interaction(image, *problem[1:], backend="tiled")
    expected = late_interaction(image.float(), *problem[1:], backend="tiled")
    assert torch.equal(mixed.i2t, expected.i2t)


def test_tiled_memory_stays_far_below_the_similarity() -> None:
    """Bytes that autograd keeps beside the tokens: the maps, one byte per winner; and no [b, t, n1, n2]."""
    problem = random_problem(32, 49, [18] * 32, 64)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    image, text = problem.image_tokens.requires_grad_(), problem.text_tokens.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        late_interaction(image, text, problem.text_lengths, backend="tiled")
    tokens = 4 * (image.numel() + text.numel())
    assert sum(kept) == tokens + 32 * 32 * (49 + 18)


def test_recomputed_maps_are_not_kept_and_change_nothing() -> None:
    problem = random_problem(8, 9, [4, 7, 2], 32)
    results = []
    for recompute in (False, True):
        kept: list[int] = []
        tokens = [tensor.clone().requires_grad_() for tensor in problem[:2]]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            found = distributed_late_interaction(
                *tokens, problem.text_lengths, backend="tiled", recompute=recompute
            )
        (found.i2t.square().sum() + found.t2i.sum()).backward()
        results.append([tensor.grad for tensor in tokens])
        assert (sum(kept) == sum(tensor.numel() for tensor in tokens)) == recompute
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frozen", [0, 1])
def test_nothing_is_computed_for_a_frozen_tower(
    backend: str, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(6, 9, [4, 5, 11], 32)
    module, seen = choose_backend(problem.image_tokens, 11, backend), []

    def backward(*arguments: object) -> object:
        seen.append(original(*arguments))
        return seen[-1]

    original = module.backward
    monkeypatch.setattr(module, "backward", backward)
    both = solve(problem, backend)
    tokens = [tensor.clone().requires_grad_(side != frozen) for side, tensor in enumerate(problem[:2])]
    similarity = late_interaction(*tokens, problem.text_lengths, backend=backend)
    torch.autograd.backward(similarity, upstream(similarity.i2t.shape))
    assert tokens[frozen].grad is None and torch.equal(tokens[1 - frozen].grad, both[3 - frozen])
    assert seen[1][frozen].numel() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_are_all_zero_give_exactly_zero(backend: str) -> None:
    problem = random_problem(3, 9, [4, 5], 32)
    nothing = Problem(torch.zeros_like(problem.image_tokens), *problem[1:])
    found = solve(nothing, backend)
    assert not found.i2t.any() and not found.t2i.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_derivative_is_refused_in_words(backend: str) -> None:
    problem = random_problem(2, 3, [2, 4], 8)
    tokens = problem.image_tokens.requires_grad_(), problem.text_tokens.requires_grad_()
    similarity = late_interaction(*tokens, problem.text_lengths, backend=backend)
    (gradient,) = torch.autograd.grad(similarity.i2t.sum(), tokens[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.square().sum().backward()


def test_functional_transforms_are_refused_in_words() -> None:
    image, text, lengths = random_problem(2, 3, [2, 4], 8)
    with pytest.raises(NotImplementedError, match="does not run inside torch"):
        torch.func.grad(lambda x: late_interaction(x, text, lengths).i2t.sum())(image)
    with pytest.raises(NotImplementedError, match="does not run inside torch"):
        torch.func.grad(lambda x: distributed_late_interaction(x, text, lengths).i2t.sum())(image)


def test_lengths_in_a_list_are_named() -> None:
    with pytest.raises(ValueError, match="text_lengths must be a tensor of integers, got a list"):
        late_interaction(torch.zeros(1, 2, 8), torch.zeros(3, 8), [3])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_by_products_are_those_by_sums(dtype: torch.dtype) -> None:
    """What ``tiled`` does on a GPU, here on a CPU; weights over nine decades, each item's on its own scale."""
    from filip.interaction import tiled

    problem = random_problem(5, 9, [3, 5, 2, 5, 3], 16)
    image, text, lengths = problem[0].to(dtype), problem[1].to(dtype), problem[2].tolist()
    order = tiled.by_length(lengths, image.device)
    maps = tiled.Residuals(*tiled.forward(image, text, lengths)[2])
    weight = torch.logspace(0, -9, 5)[:, None] * (1 + torch.rand(5, 5)) * 1e-3
    per_text = torch.tensor(lengths)
    for gradient in (weight, weight.T):
        weights = (gradient / 9)[:, order.texts], (gradient / per_text)[:, order.texts]
        found = tiled._by_products(weights, image, text, maps, order, (True, True))
        wanted = tiled.backward(gradient, gradient, image, text, lengths, maps)
        pairs = [*zip(found[0], wanted[0], strict=True)]
        pairs += zip(found[1].split(lengths), wanted[1].split(lengths), strict=True)
        for a, b in pairs:
            assert float((a - b).norm() / b.norm()) < 4 * torch.finfo(dtype).eps
    frozen = tiled._by_products(weights, image, text, maps, order, (False, True))
    assert frozen[0].numel() == 0 and torch.equal(frozen[1], found[1])


def test_the_slice_of_a_gpu_takes_few_kernels_and_little_scratch() -> None:
    """320 images with 40,960 captions of 4 to 77 tokens, in shapes alone ("meta" stands for an accelerator)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from filip.interaction import tiled

    class Counted(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.operations, self.largest = 0, 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if not function.is_view:
                self.operations += 1
                for tensor in result if isinstance(result, tuple | list) else (result,):
                    if isinstance(tensor, torch.Tensor) and tensor.dim() > 2:
                        self.largest = max(self.largest, tensor.numel() * tensor.element_size())
            return result

    normal = torch.distributions.Normal(18.0, 6.0)
    lengths = normal.icdf((torch.arange(40_960) + 0.5) / 40_960).round().long().clamp(4, 77).tolist()
    image = torch.empty(320, 49, 256, dtype=torch.float16, device="meta")
    text = torch.empty(sum(lengths), 256, dtype=torch.float16, device="meta")
    counts = []
    with Counted() as counted:
        i2t, t2i, maps = tiled.forward(image, text, lengths)
        counts.append(counted.operations)
        counted.largest = 0
        tiled.backward(i2t, t2i, image, text, lengths, maps)
        counts.append(counted.operations - counts[0])
    assert counts[0] < 2500 and counts[1] < 4500, counts  # 13,413 a forward before tiles grew with the device
    assert counted.largest <= 1 << 28  # bytes, where the lists of all winners took 1.6 GB


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_tiles_cover_every_pair_once(device: str) -> None:
    """On a CPU they fit its cache, elsewhere they are few; "meta" stands for an accelerator."""
    from filip.interaction import tiled

    lengths = sorted(random_lengths(300, 1, 40))
    seen = torch.zeros(20, 300, dtype=torch.int64)
    tiles = list(tiled.tiles(20, 49, lengths, torch.device(device)))
    for images, first, last in tiles:
        assert lengths[first] == lengths[last - 1]
        seen[images, first:last] += 1
    assert bool((seen == 1).all())
    if device == "meta":
        assert len(tiles) == len(set(lengths))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("filler", [0.0, 1e4, float("nan")])
def test_masked_image_tokens_take_part_in_nothing(backend: str, filler: float) -> None:
    """All similarities are negative, so that a padding of zeros would win every maximum over image tokens."""
    problem = random_problem(3, 6, [3, 1, 5], 16)
    text, lengths = -problem.text_tokens.abs(), problem.text_lengths
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0]]).bool()
    image = torch.where(mask[..., None], problem.image_tokens.abs(), filler).requires_grad_()
    text = text.requires_grad_()
    found = late_interaction(image, text, lengths, image_mask=mask, backend=backend)
    alone = [
        late_interaction(tokens[keep][None], text, lengths, backend="reference")
        for tokens, keep in zip(image, mask, strict=True)
    ]
    for name in ("i2t", "t2i"):
        wanted = torch.cat([getattr(similarity, name) for similarity in alone])
        torch.testing.assert_close(getattr(found, name), wanted, rtol=1e-5, atol=1e-6)
    weights = upstream(found.i2t.shape)
    gradients = torch.autograd.grad(tuple(found), (image, text), weights)
    separate = tuple(torch.cat(matrices) for matrices in zip(*alone, strict=True))
    for a, b in zip(gradients, torch.autograd.grad(separate, (image, text), weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not gradients[0][~mask].any()


def test_a_mask_that_does_not_fit_is_named() -> None:
    problem = random_problem(2, 3, [2, 4], 8)
    for mask, message in (
        (torch.ones(2, 3), "boolean"),
        (torch.ones(2, 4).bool(), "boolean \\[images, n1\\] = \\[2, 3\\]"),
        (torch.tensor([[True] * 3, [False] * 3]), "without a token"),
    ):
        with pytest.raises(ValueError, match=message):
            late_interaction(*problem, image_mask=mask)


def test_pack_tokens_refuses_a_text_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="5 tokens does not fit in 4"):
        pack_tokens(torch.zeros(2, 4, 8), torch.tensor([5, 1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("setting", ["high", "medium"])
def test_float32_is_multiplied_as_such_whatever_the_setting(
    backend: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch may round factors to TF32 or bfloat16 if asked to; nearly equal tokens would lose their winners."""
    if backend == "reference":
        pytest.skip("plain PyTorch, as the user has set it")
    if not hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        pytest.skip("this PyTorch has the setting for GPUs only")
    problem = random_problem(6, 9, [4, 7, 2], 32)
    before = torch.get_float32_matmul_precision()
    seen: list[str] = []
    original = torch.Tensor.__matmul__

    def matmul(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return original(left, right)

    plain = solve(problem, backend)
    try:
        torch.set_float32_matmul_precision(setting)
        monkeypatch.setattr(torch.Tensor, "__matmul__", matmul)
        found = solve(problem, backend)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    assert set(seen) <= {"ieee"} and bool(seen) == (backend == "tiled")


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_maps_are_asked_for_where_nobody_differentiates(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = random_problem(6, 9, [4, 5, 11], 32)
    module = choose_backend(problem.image_tokens, 11, backend)
    original, saved = module.forward, list[bool]()
    monkeypatch.setattr(module, "forward", lambda *inputs: saved.append(inputs[3]) or original(*inputs))
    late_interaction(*problem, backend=backend)
    with torch.no_grad():
        late_interaction(problem.image_tokens.requires_grad_(), *problem[1:], backend=backend)
    score(*problem, backend=backend)
    late_interaction(*problem, backend=backend)
    assert saved == [False, False, False, True]
