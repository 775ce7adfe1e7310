"""The work of each rank of test_distributed.py: the same pairs on W ranks and on one process, compared on each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from late_interaction import (
    ContrastiveOutput,
    Similarity,
    contrastive_loss,
    distributed_late_interaction,
    distributed_pooled_similarity,
    gather_ids,
    late_interaction,
    pooled_similarity,
)
from tests.support.ranks import Cases

PAIRS = [3, 2, 4, 1]  # pairs of each rank: unequal on purpose
N1, D = 6, 16


class Towers(nn.Module):
    """One linear layer per side, shared by all ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(5, D), nn.Linear(4, D)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1), self.log_scale.exp())


class Pairs:
    """The pairs of ``ranks`` ranks, and each rank's share of them."""

    def __init__(self, counts: list[int]) -> None:
        generator = torch.Generator().manual_seed(7)
        self.counts, total = counts, sum(counts)
        self.image = torch.randn(total, N1, 5, generator=generator)
        self.lengths = torch.randint(1, 9, (total,), generator=generator)
        self.text = torch.randn(int(self.lengths.sum()), 4, generator=generator)
        self.ids = torch.randint(0, 1 + total // 2, (total,), generator=generator)

    def of(self, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first = sum(self.counts[:rank])
        rows = slice(first, first + self.counts[rank])
        tokens = slice(int(self.lengths[:first].sum()), int(self.lengths[: rows.stop].sum()))
        return self.image[rows], self.text[tokens], self.lengths[rows], self.ids[rows]


def local_loss(pairs: Pairs, rank: int, model: Towers, group: Any, options: dict[str, Any]) -> ContrastiveOutput:
    image, text, lengths, ids = pairs.of(rank)
    if options.get("exchange") == "pooled":
        encoded = model(image[:, 0], torch.stack([part[0] for part in text.split(lengths.tolist())]))
        similarity = distributed_pooled_similarity(*encoded[:2], group=group)
    else:
        encoded = model(image, text)
        similarity = distributed_late_interaction(*encoded[:2], lengths, group=group, **options)
    all_ids, offset = gather_ids(ids, group=group)
    assert torch.equal(all_ids, pairs.ids) and offset == sum(pairs.counts[:rank])
    return contrastive_loss(similarity, encoded[2], offset=offset, ids=ids, all_ids=all_ids)


def whole_loss(pairs: Pairs, model: Towers, options: dict[str, Any]) -> ContrastiveOutput:
    if options.get("exchange") == "pooled":
        firsts = torch.stack([part[0] for part in pairs.text.split(pairs.lengths.tolist())])
        encoded = model(pairs.image[:, 0], firsts)
        return contrastive_loss(pooled_similarity(*encoded[:2]), encoded[2], ids=pairs.ids)
    image, text, scale = model(pairs.image, pairs.text)
    transport = options.get("transport_dtype")
    if transport is not None:
        image, text = image.to(transport), text.to(transport)
    return contrastive_loss(late_interaction(image, text, pairs.lengths, backend="reference"), scale, ids=pairs.ids)


def compare(counts: list[int], rank: int, group: Any, tolerance: float, **options: Any) -> None:
    """Compare loss, accuracy and parameter gradients of the ranks of ``group`` with one process."""
    pairs, model, ranks = Pairs(counts), Towers(), len(counts)
    # With unequal shares the mean over ranks is the mean over pairs only if each rank counts by its pairs.
    weight = counts[rank] * ranks / sum(counts)
    output = local_loss(pairs, rank, model, group, options)
    (output.loss * weight).backward()
    scalars = torch.stack([value.detach() * weight / ranks for value in output])
    dist.all_reduce(scalars, group=group)
    results = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        dist.all_reduce(parameter.grad, group=group)
        results.append(parameter.grad / ranks)
    alone = Towers()
    expected = whole_loss(pairs, alone, options)
    expected.loss.backward()
    torch.testing.assert_close(scalars, torch.stack([v.detach() for v in expected]), rtol=tolerance, atol=1e-6)
    for a, parameter in zip(results, alone.parameters(), strict=True):
        assert parameter.grad is not None
        difference = float((a - parameter.grad).abs().max() / parameter.grad.abs().max())
        assert difference <= tolerance, f"{options}: gradient differs by {difference:.1e}"


def cases(ranks: int) -> Cases:
    """Return what must hold on ``ranks`` ranks: they equal one process, whatever the options."""
    result: Cases = {
        "pooled": partial(as_one_process, tolerance=1e-5, exchange="pooled"),
        "pooled, mistakes": pooled_mistakes,
        "pooled, each rank uses another matrix": each_rank_uses_another_matrix,
    }
    for exchange in ("gather", "ring"):
        options: dict[str, dict[str, Any]] = {
            "tiled": {"backend": "tiled"},
            "tiled, recomputed": {"backend": "tiled", "recompute": True},
            "auto": {},
            "reference": {"backend": "reference"},
            "float16 on the wire": {"backend": "tiled", "transport_dtype": torch.float16, "tolerance": 2e-3},
        }
        for name, chosen in options.items():
            result[f"{exchange}, {name}"] = partial(
                as_one_process, **{"tolerance": 1e-5, "exchange": exchange, **chosen}
            )
        result[f"{exchange}, small gradients in float16"] = partial(small_gradients_arrive, exchange=exchange)
        result[f"{exchange}, frozen images"] = partial(one_side_frozen, exchange=exchange, frozen=0)
        result[f"{exchange}, frozen texts"] = partial(one_side_frozen, exchange=exchange, frozen=1)
        result[f"{exchange}, mistakes"] = partial(a_mistake_on_one_is_an_error_on_all, exchange=exchange)
        result[f"{exchange}, images of different sizes"] = partial(masked_images, exchange=exchange)
        if ranks == 4:
            result[f"{exchange}, groups of two"] = partial(groups_of_two, exchange=exchange)
    return result


def as_one_process(rank: int, ranks: int, *, tolerance: float, **options: Any) -> None:
    compare(PAIRS[:ranks], rank, None, tolerance, **options)


def masked_images(rank: int, ranks: int, *, exchange: str) -> None:
    """Check for one process's values and gradients; the last rank's images are all whole, and it passes no mask."""
    counts = PAIRS[:ranks]
    pairs, first, last = Pairs(counts), sum(counts[:rank]), rank == ranks - 1
    own = slice(first, first + counts[rank])
    mask = torch.arange(N1) < 1 + torch.arange(sum(counts))[:, None] % N1
    mask[sum(counts) - counts[-1] :] = True
    ends = pairs.lengths.cumsum(0)
    rows = slice(int(ends[first] - pairs.lengths[first]), int(ends[own.stop - 1]))

    def tokens(of_images: slice, of_texts: slice) -> list[Tensor]:
        image = F.normalize(pairs.image[of_images], dim=-1)[:, :, :4].abs()
        image = torch.where(mask[of_images, :, None], image, torch.nan)
        return [image.requires_grad_(), (-F.normalize(pairs.text[of_texts], dim=-1).abs()).requires_grad_()]

    def gradients(similarity: Similarity, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(similarity.i2t.square().sum() + similarity.t2i.square().sum(), leaves)

    everything, mine = slice(None), tokens(own, rows)
    whole = tokens(everything, everything)
    expected = late_interaction(*whole, pairs.lengths, image_mask=mask, backend="reference")
    result = distributed_late_interaction(
        *mine, pairs.lengths[own], image_mask=None if last else mask[own], exchange=exchange, backend="tiled"
    )
    torch.testing.assert_close(result.i2t, expected.i2t[own])
    torch.testing.assert_close(result.t2i, expected.t2i[:, own])
    for name, a, b, part in zip("it", gradients(result, mine), gradients(expected, whole), (own, rows), strict=True):
        torch.testing.assert_close(a, b[part], msg=lambda text, name=name: f"{name}: {text}")


def small_gradients_arrive(rank: int, ranks: int, *, exchange: str) -> None:
    """Send gradients far below the smallest float16, with float16 on the wire: only the tokens are rounded."""
    image, text, lengths, _ = Pairs(PAIRS[:ranks]).of(rank)
    gradients = []
    for weight in (1.0, 2.0**-40):
        tokens = [F.normalize(image[:, :, :4], dim=-1).requires_grad_(), F.normalize(text, dim=-1).requires_grad_()]
        result = distributed_late_interaction(
            *tokens, lengths, exchange=exchange, backend="tiled", transport_dtype=torch.float16
        )
        ((result.i2t.sum() + result.t2i.square().sum()) * weight).backward()
        gradients.append([tensor.grad / weight for tensor in tokens if tensor.grad is not None])
    assert len(gradients[1]) == 2
    for large, small in zip(*gradients, strict=True):
        assert large.dtype == torch.float32 and torch.equal(large, small)
        assert not torch.equal(large, large.half().float())


def one_side_frozen(rank: int, ranks: int, *, exchange: str, frozen: int) -> None:
    """Freeze one side on all ranks: the other side's gradient is what it is with both, and nothing waits."""
    image, text, lengths, _ = Pairs(PAIRS[:ranks]).of(rank)
    gradients = []
    for needs in ([True, True], [frozen != 0, frozen != 1]):
        tokens = [F.normalize(image[:, :, :4], dim=-1), F.normalize(text, dim=-1)]
        for tensor, need in zip(tokens, needs, strict=True):
            tensor.requires_grad_(need)
        result = distributed_late_interaction(*tokens, lengths, exchange=exchange, backend="tiled")
        (result.i2t.square().sum() + result.t2i.square().sum()).backward()
        gradients.append([tensor.grad for tensor in tokens])
    assert gradients[1][frozen] is None
    torch.testing.assert_close(gradients[0][1 - frozen], gradients[1][1 - frozen], rtol=0, atol=0)


def refused(call: Callable[[], object], sentence: str) -> None:
    """Check that ``call`` raises ValueError with ``sentence``, on this rank as on all, and the group still works."""
    try:
        call()
    except ValueError as error:
        assert sentence in str(error), error
    else:
        raise AssertionError(f"not refused: {sentence}")
    dist.all_reduce(torch.ones(1))


def a_mistake_on_one_is_an_error_on_all(rank: int, ranks: int, *, exchange: str) -> None:
    """Expect an error on all ranks, whatever the last rank does differently."""
    image, text, lengths, _ = Pairs(PAIRS[:ranks]).of(rank)
    image, last = image[:, :, :4], rank == ranks - 1
    score = partial(distributed_late_interaction, backend="tiled")

    def other_form() -> object:
        name = {"gather": "ring", "ring": "gather"}[exchange] if last else exchange
        return score(image, text, lengths, exchange=name)

    def with_tokens(image: Tensor, text: Tensor, lengths: Tensor) -> Callable[[], object]:
        return lambda: score(image, text, lengths, exchange=exchange)

    end = f"on rank {ranks - 1}"
    refused(other_form, f"disagree on exchange: {exchange!r} on rank 0")
    refused(
        with_tokens(*((image.double(), text.double()) if last else (image, text)), lengths),
        f"the dtype of the image tokens: torch.float32 on rank 0, torch.float64 {end}; use one dtype",
    )
    refused(
        with_tokens(*((image[:, :, :3], text[:, :3]) if last else (image, text)), lengths),
        f"the number of features: 4 on rank 0, 3 {end}",
    )
    refused(
        with_tokens(image.clone().requires_grad_(not last), text.clone().requires_grad_(), lengths),
        f"whether image tokens need a gradient: yes on rank 0, no {end}; freeze a tower on all ranks",
    )
    refused(with_tokens(image, text, lengths + int(last)), "text_lengths sum to")
    refused(with_tokens(image[:0] if last else image, text, lengths), "empty batch: 0 images")
    refused(lambda: score(image, text, lengths, exchange="rign" if last else exchange), "'rign' is not one of")


def pooled_mistakes(rank: int, ranks: int) -> None:
    last = rank == ranks - 1
    image, text = torch.randn(3, 4), torch.randn(3, 4)
    refused(
        lambda: distributed_pooled_similarity(image, text.double() if last else text),
        "the dtype of the text tokens: torch.float32 on rank 0",
    )
    refused(lambda: distributed_pooled_similarity(image[:, :3] if last else image, text), "expected [images, d]")
    lengths = torch.tensor([1, 1, 1])
    refused(
        lambda: (
            distributed_late_interaction(image[:, None], text, lengths)
            if last
            else distributed_pooled_similarity(image, text)
        ),
        "the ranks called different functions: distributed_pooled_similarity on rank 0",
    )


def each_rank_uses_another_matrix(rank: int, ranks: int) -> None:
    """Take a loss of i2t on one rank and of t2i on another: the backward's collectives match all the same."""
    image, text = torch.randn(3, 4).requires_grad_(), torch.randn(3, 4).requires_grad_()
    result = distributed_pooled_similarity(image, text)
    result[rank % 2].square().sum().backward()
    assert image.grad is not None and text.grad is not None and bool(text.grad.any())


def groups_of_two(rank: int, ranks: int, *, exchange: str) -> None:
    """Form groups that do not start at rank 0 and whose members are not neighbours."""
    for members in ([0, 2], [1, 3]):
        group = dist.new_group(members)
        if rank in members:
            compare([3, 2], members.index(rank), group, 1e-5, exchange=exchange, backend="tiled")
