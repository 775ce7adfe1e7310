"""Train FILIP with plain PyTorch: from tars to a zero-shot number, with this project's loader, model and loss.

    torchrun --standalone --nproc_per_node 2 examples/train.py --shards DIR --captions DIR --out m.safetensors
    python examples/train.py --shards DIR --out m.safetensors --test FOLDER                # of a folder per class

This is what `filip train engine=ddp optimizer.name=adamw` computes (tests/train/test_example.py compares both to 2e-6),
without its checkpoints, monitors, precisions and optimisers. Read it first, copy it into your project, or change it.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import filip
from filip.images.eval_transform import normalize_planes
from filip.loading.config import DataConfig, Source, StreamConfig
from filip.loading.loader import PairLoader, build_loader
from filip.models import DualEncoder, TextFeatures, build_model, load_preset, save_model
from late_interaction import contrastive_loss, distributed_late_interaction, gather_ids


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="folder of webdataset tars")
    parser.add_argument("--captions", help="folder of caption side-cars; without it the .txt files in the tars")
    parser.add_argument("--model", default="tiny", help="a preset of filip/conf/model: tiny, small, demo, base, large")
    parser.add_argument("--batch", type=int, default=256, help="pairs of a batch over all ranks, all negatives of each")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--warmup", type=int, default=100, help="steps in which the learning rate rises")
    parser.add_argument("--lr", type=float, default=1e-3, help="at 512 pairs; it follows the square root of the batch")
    parser.add_argument("--weight-decay", type=float, default=0.03, help="of matrices alone")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of a rank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast the towers")
    parser.add_argument("--test", help="folder with a folder per class, named as in a caption: zero-shot")
    parser.add_argument("--out", required=True, help="the model, a .safetensors file")
    return parser.parse_args()


def loader(a: argparse.Namespace, model: DualEncoder, rank: int, world: int) -> PairLoader:
    """Return batches of pixels uint8 [b, 3, S, S], ids [b, n], lengths [b] and group [b], one epoch an iteration.

    The order of pairs and every augmentation follow from the seed alone, whatever the number of ranks and workers.
    """
    stream = StreamConfig(
        DataConfig(sources=[Source(a.shards, a.captions)], workers=a.workers),
        batch_size=a.batch // world,
        image_size=model.image_size,
        context_length=model.config.text.context_length,
        seed=a.seed,
        rank=rank,
        world_size=world,
    )
    return build_loader(stream, pin_memory=torch.accelerator.is_available())


def optimizer(model: DualEncoder, a: argparse.Namespace) -> torch.optim.AdamW:
    """Return AdamW that decays the weights of linear layers and convolutions: no bias, norm, embedding, temperature."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    matrices = {id(layer.weight) for layer in layers}
    decaying = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    groups = [{"params": decaying, "weight_decay": a.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=a.lr, fused=True)


def rate(step: int, a: argparse.Namespace) -> float:
    """Return the learning rate of a step, the first being 0: a linear warm-up, then a cosine to 0."""
    peak: float = a.lr * math.sqrt(a.batch / 512)
    if step < a.warmup:
        return peak * (step + 1) / a.warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - a.warmup) / (a.steps - a.warmup)))


def loss_of(model: nn.Module, batch: dict[str, Tensor], device: torch.device, bf16: bool) -> Tensor:
    """Return this rank's share of FILIP's loss: the mean over ranks is that of the whole batch, and so is its gradient.

    Each patch takes its best word, each word its best patch, and both means go into CLIP's cross-entropy. Pairs of one
    ``group`` have the same caption or picture, and are positives of each other.
    """
    pixels = normalize_planes(batch["pixels"].to(device, non_blocking=True))
    ids, group = batch["ids"].to(device, non_blocking=True), batch["group"].to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        encoded = model(pixels, ids, batch["lengths"])  # lengths stay on the host, where the packed layout is made
    assert isinstance(encoded.text, TextFeatures)
    # Exchanges the texts' tokens among all ranks, and never holds more than a tile of the similarities at a time.
    similarity = distributed_late_interaction(
        encoded.image, *encoded.text, transport_dtype=torch.bfloat16 if bf16 else None
    )
    all_groups, offset = gather_ids(group)
    loss: Tensor = contrastive_loss(similarity, encoded.logit_scale, offset=offset, ids=group, all_ids=all_groups).loss
    return loss


def train(a: argparse.Namespace) -> DualEncoder:
    """Train and return the model; the first rank prints the loss."""
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cpu")
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    random.seed(a.seed)  # the same weights on all ranks
    np.random.seed(a.seed)
    torch.manual_seed(a.seed)
    model = build_model(load_preset(a.model)).to(device)
    ddp = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True) if world > 1 else model
    adamw, batches = optimizer(model, a), chain.from_iterable(repeat(loader(a, model, rank, world)))
    for step in range(a.steps):
        for group in adamw.param_groups:
            group["lr"] = rate(step, a)
        loss = loss_of(ddp, next(batches), device, a.bf16)
        loss.backward()
        # A number that is not finite on one rank makes the norm of all ranks' gradients so, and the fused kernels then
        # leave the step out. They read that on the device, and the host goes on.
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        adamw.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        adamw.step()
        adamw.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(model.config.max_logit_scale))
        if (step + 1) % 10 == 0 or step + 1 == a.steps:
            # the only place where the host waits for the device
            mean = loss.detach() / world
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step + 1} of {a.steps}: loss {float(mean):.6f}", flush=True)
    return model


def zero_shot(weights: str, folder: Path) -> float:
    """Return the share of pictures in ``folder``/CLASS that the model finds most similar to "a photo of CLASS"."""
    model = filip.load(weights)
    classes = sorted(place.name for place in folder.iterdir() if place.is_dir())
    texts = [f"a photo of {name.replace('_', ' ')}" for name in classes]
    right = total = 0
    for number, name in enumerate(classes):
        pictures = sorted(str(file) for file in (folder / name).iterdir())
        best = model.similarity(pictures, texts).i2t.argmax(1)
        right, total = right + int((best == number).sum()), total + len(pictures)
    return right / total


def main() -> None:
    a = arguments()
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update({} if "RANK" in os.environ else alone)
    dist.init_process_group()
    model = train(a)
    if dist.get_rank() == 0:
        save_model(a.out, model)
        if a.test:
            print(f"zero-shot top-1: {zero_shot(a.out, Path(a.test)):.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
