"""Every term of the loss against its naive form: time and memory of forward and backward, on this machine.

    python -m bench.losses [--pairs 128] [--texts 0] [--only TERM ...] [--json PATH]

The naive form is what public forks do: captions padded to the longest, one einsum over all images and texts, the
padding masked, and PyTorch's own differentiation, which keeps every intermediate tensor. Time is CPU time of the
process, the median of the rounds; memory is the growth of the resident set at its high-water mark. Captions have 20
tokens on average, images 49 patches, d = 256. `--texts` scores the own pairs against more texts, as a rank among many
does (16 and 8192 are the paper's slice): the naive forms that do not fit are then left out.
"""

import argparse
import ctypes
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads OpenMP

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.interaction_memory import growth
from filip_research.sigmoid import sigmoid_loss
from filip_research.sparc import local_loss
from filip_research.text_conditioned import attended_similarity, initial
from late_interaction import Blockwise, Similarity, SmoothMaximum, late_interaction, pooled_similarity, top_k_mean
from late_interaction.backends import AnyBackend

D, PATCHES = 256, 49
SCALE, BIAS = torch.tensor(1 / 0.07), torch.tensor(-10.0)
Loss = Callable[[], Tensor]
MOST_BYTES = 6e9  # a naive form that would hold more is left out


class Batch:
    """The images of a rank and the texts that they are scored against; the images' own come first."""

    def __init__(self, pairs: int, texts: int) -> None:
        generator = torch.Generator().manual_seed(0)

        def unit(*shape: int) -> Tensor:
            return F.normalize(torch.randn(*shape, D, generator=generator), dim=-1).requires_grad_()

        lengths = (20 + 6 * torch.randn(texts, generator=generator)).round().long().clamp(4, 77)
        self.pairs, self.lengths = pairs, lengths
        self.image, self.text = unit(pairs, PATCHES), unit(int(lengths.sum()))
        self.image_vector, self.text_vector = unit(pairs), unit(texts)
        self.query, self.key, self.value = (tensor[0].requires_grad_() for tensor in list(initial(D).values())[:3])

    def leaves(self) -> list[Tensor]:
        return [self.image, self.text, self.image_vector, self.text_vector, self.query, self.key, self.value]

    def captions(self) -> list[Tensor]:
        return list(self.text.split(self.lengths.tolist()))

    def padded(self) -> tuple[Tensor, Tensor]:
        """Return [texts, n2, d] and the mask [texts, n2]."""
        longest = int(self.lengths.max())
        mask = torch.arange(longest) < self.lengths[:, None]
        return torch.zeros(*mask.shape, D).masked_scatter(mask[..., None], self.text), mask

    def own(self, similarity: Similarity) -> Tensor:
        """Return the cross-entropy of this rank's rows, in both directions, even with more texts than images."""
        i2t = F.cross_entropy(SCALE * similarity.i2t, torch.arange(self.pairs))
        return (i2t + F.cross_entropy(SCALE * similarity.t2i, torch.arange(self.pairs))) / 2


def ours(batch: Batch) -> dict[str, Loss]:
    """Return the terms with the settings of a training."""

    def token_wise(backend: AnyBackend = "auto") -> Tensor:
        return batch.own(late_interaction(batch.image, batch.text, batch.lengths, backend=backend))

    def sparc() -> Tensor:
        lengths = batch.lengths[: batch.pairs].tolist()
        captions, found = batch.captions(), []
        for length in sorted(set(lengths)):
            members = [i for i, other in enumerate(lengths) if other == length]
            words = torch.stack([captions[i] for i in members])
            found.append(local_loss(batch.image[members], words, SCALE)[0].sum())
        return torch.stack(found).sum() / batch.pairs

    def attend() -> Tensor:
        patches = torch.cat([batch.image @ batch.key.T, batch.image @ batch.value.T], dim=2)
        captions = torch.cat([batch.text_vector @ batch.query.T, batch.text_vector], dim=1)
        ones = torch.ones(len(captions), dtype=torch.int64)
        similarity = late_interaction(patches, captions, ones, backend=Blockwise(attended_similarity, width=D))
        return sigmoid_loss(similarity.i2t, SCALE, BIAS).loss

    def hard_negatives() -> Tensor:
        similarity = late_interaction(batch.image, batch.text, batch.lengths)
        with torch.no_grad():
            margin = 0.1 * batch.text_vector[: batch.pairs] @ batch.text_vector.T
        return batch.own(Similarity(similarity.i2t + margin, similarity.t2i + margin))

    return {
        "token_wise": token_wise,
        "pooled": lambda: batch.own(pooled_similarity(batch.image_vector, batch.text_vector)),
        "sigmoid": lambda: sigmoid_loss(pooled_similarity(batch.image_vector, batch.text_vector).i2t, SCALE, BIAS).loss,
        "sparc": sparc,
        "text_conditioned": attend,
        "hard_negatives": hard_negatives,
        "smooth maximum": lambda: token_wise(SmoothMaximum(0.05)),
        "mean of the top 2": lambda: token_wise(Blockwise(top_k_mean(2))),
    }


def naive(batch: Batch) -> dict[str, Loss]:
    """Return the same terms by padding and einsum."""

    def matrices(maximum: Callable[[Tensor, int], Tensor]) -> Similarity:
        padded, mask = batch.padded()
        similarity = torch.einsum("ind,tmd->itnm", batch.image, padded)
        lowest = similarity.masked_fill(~mask[None, :, None, :], -1e4)
        by_word = (maximum(similarity, 2) * mask).sum(dim=2) / batch.lengths
        return Similarity(maximum(lowest, 3).mean(dim=2), by_word)

    def hard(similarity: Tensor, dim: int) -> Tensor:
        return similarity.max(dim=dim).values

    def smooth(similarity: Tensor, dim: int) -> Tensor:
        return 0.05 * torch.logsumexp(similarity / 0.05, dim=dim)

    def top(similarity: Tensor, dim: int) -> Tensor:
        return similarity.topk(2, dim=dim).values.mean(dim=dim)

    def sigmoid() -> Tensor:
        logits = SCALE * batch.image_vector @ batch.text_vector.T + BIAS
        signs = 2 * torch.eye(*logits.shape) - 1
        return -F.logsigmoid(signs * logits).sum() / batch.pairs

    def sparc() -> Tensor:
        padded, mask = (part[: batch.pairs] for part in batch.padded())
        similarity = torch.einsum("btd,bpd->btp", padded, batch.image)
        low, high = similarity.amin(-1, keepdim=True), similarity.amax(-1, keepdim=True)
        scaled = (similarity - low) / (high - low + 1e-8)
        scaled = torch.where(scaled < 1 / PATCHES, 0.0, scaled)
        weights = scaled / (scaled.sum(-1, keepdim=True) + 1e-8)
        grouped = F.normalize(torch.einsum("btp,bpd->btd", weights, batch.image), dim=-1)
        logits = SCALE * torch.einsum("btd,bkd->btk", padded, grouped)
        labels = torch.arange(mask.shape[1]).expand(len(mask), -1)
        halves = [
            F.cross_entropy(side.masked_fill(~mask[:, None], -1e4).mT, labels, reduction="none")
            for side in (logits, logits.mT)
        ]
        return sum((half * mask).sum() / mask.sum() for half in halves) / 2  # type: ignore[return-value]

    def attend() -> Tensor:
        keys, values = batch.image @ batch.key.T, batch.image @ batch.value.T
        scores = torch.einsum("ind,td->itn", keys, batch.text_vector @ batch.query.T) / math.sqrt(D)
        weights = F.pad(scores, (0, 1)).softmax(dim=2)[..., :-1]
        seen = F.normalize(torch.einsum("itn,ind->itd", weights, values), dim=2)
        logits = SCALE * torch.einsum("itd,td->it", seen, batch.text_vector) + BIAS
        return -F.logsigmoid((2 * torch.eye(*logits.shape) - 1) * logits).sum() / batch.pairs

    def hard_negatives() -> Tensor:
        similarity = matrices(hard)
        margin = 0.1 * (batch.text_vector[: batch.pairs] @ batch.text_vector.T).detach()
        return batch.own(Similarity(similarity.i2t + margin, similarity.t2i + margin))

    return {
        "token_wise": lambda: batch.own(matrices(hard)),
        "pooled": lambda: batch.own(pooled_similarity(batch.image_vector, batch.text_vector)),
        "sigmoid": sigmoid,
        "sparc": sparc,
        "text_conditioned": attend,
        "hard_negatives": hard_negatives,
        "smooth maximum": lambda: batch.own(matrices(smooth)),
        "mean of the top 2": lambda: batch.own(matrices(top)),
    }


def fits(term: str, pairs: int, texts: int) -> bool:
    """Return whether the naive form of ``term`` is worth a wait: it holds about four copies of its largest tensor."""
    largest = {
        "mean of the top 2": 2 * PATCHES * 40,
        "pooled": 1,
        "sigmoid": 1,
        "sparc": PATCHES * 40 // texts or 1,
        "text_conditioned": D + PATCHES,
    }
    return pairs * texts * largest.get(term, PATCHES * 40) * 4 * 4 < MOST_BYTES


def seconds(batch: Batch, terms: dict[str, Loss], rounds: int) -> dict[str, tuple[float, float]]:
    """Measure median CPU seconds of forward, and of forward and backward."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in terms}
    for current in range(rounds + 1):
        for name, loss in terms.items():
            for leaf in batch.leaves():
                leaf.grad = None
            started = time.process_time()
            value = loss()
            forward = time.process_time() - started
            value.backward()
            if current:  # the first is a warm-up
                taken[name].append((forward, time.process_time() - started))
    return {name: tuple(map(statistics.median, zip(*pairs, strict=True))) for name, pairs in taken.items()}  # type: ignore[misc]


def peak_megabytes(loss: Loss, batch: Batch) -> float:
    """Return the peak of one step, gradients included, above what was resident before it."""
    for leaf in batch.leaves():
        leaf.grad = None
    return growth(lambda: loss().backward())


def return_freed_memory() -> None:
    """Have the allocator give blocks of 64 KB and more back when they are freed, so that no growth hides in them."""
    trim_threshold, mmap_threshold = -1, -3
    for option in (trim_threshold, mmap_threshold):
        ctypes.CDLL(None).mallopt(option, 65536)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=128, help="own pairs")
    parser.add_argument("--texts", type=int, default=0, help="texts that they are scored against; 0: their own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[], help="terms; all by default")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    pairs, texts = options.pairs, options.texts or options.pairs
    return_freed_memory()
    batch = Batch(pairs, texts)
    found: dict[str, Any] = {}
    terms = ours(batch)
    if unknown := set(options.only) - terms.keys():
        parser.error(f"--only {' '.join(unknown)}: the terms are {', '.join(terms)}")
    own = {name: loss for name, loss in terms.items() if name in (options.only or [name])}
    kept = {name: loss for name, loss in naive(batch).items() if name in own and fits(name, pairs, texts)}
    times = {"ours": seconds(batch, own, options.rounds), "naive": seconds(batch, kept, 1)}
    threads = torch.get_num_threads()
    print(f"{pairs} images of {PATCHES} patches, {texts} captions of 20 tokens, d = {D}, {threads} threads", flush=True)
    print(f"{'':20}{'forward ms':>12}{'both ms':>10}{'MB':>8}{'naive ms':>11}{'MB':>8}{'time x':>9}{'memory x':>10}")
    for name, (forward, both) in times["ours"].items():
        memory = peak_megabytes(own[name], batch)
        row = {"forward_ms": 1e3 * forward, "ms": 1e3 * both, "mb": memory}
        line = f"{name:20}{1e3 * forward:12.1f}{1e3 * both:10.1f}{memory:8.1f}"
        if name in times["naive"]:
            slow, large = times["naive"][name][1], peak_megabytes(kept[name], batch)
            row |= {"naive_ms": 1e3 * slow, "naive_mb": large}
            line += f"{1e3 * slow:11.1f}{large:8.1f}{slow / both:9.1f}{large / max(memory, 0.1):10.1f}"
        found[name] = row
        print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
