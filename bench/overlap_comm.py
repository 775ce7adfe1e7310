"""DeepSpeed's overlap_comm off and on, step for step in turn, on the ranks that a launcher starts.

    torchrun --standalone --nproc_per_node 2 -m bench.overlap_comm setting=zero1_bf16 model=small
    deepspeed --num_gpus 8 --no_local_rank --module bench.overlap_comm setting=zero1_fp16 model=base batch=128

One engine each way on the same model and batches (random pixels, and a pooled loss over each rank's own pairs, so that
the reduction of gradients is what crosses ranks). Seconds per step are of the slowest rank.
"""

import json
import statistics
import time
from dataclasses import dataclass

import torch

from filip.command import option, run_command
from filip.device import synchronize
from filip.models import build_model, load_preset
from filip.resources import shipped
from filip.train.ranks import Ranks, start_ranks
from late_interaction import contrastive_loss, pooled_similarity


@dataclass
class OverlapComm:
    setting: str = option("zero1_bf16", "file of ds_configs, whose overlap_comm is set to false and to true")
    model: str = option("small", "preset of filip/conf/model")
    batch: int = option(4, "pairs per rank")
    steps: int = option(20, "timed steps each way, after two for warming up")
    threads: int = option(1, "CPU threads per rank")


class Side:
    """An engine with ``overlap_comm`` off or on."""

    def __init__(self, options: OverlapComm, ranks: Ranks, overlap: bool) -> None:
        import deepspeed

        torch.manual_seed(0)
        config = load_preset(options.model)
        config.interaction = "pooled"
        settings = json.loads((shipped("ds_configs") / f"{options.setting}.json").read_text())
        settings["zero_optimization"]["overlap_comm"] = overlap
        settings |= {"train_micro_batch_size_per_gpu": options.batch}
        model = build_model(config)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters(), 1e-5), config=settings,
            dist_init_required=False,
        )  # fmt: skip
        size, words = config.image.image_size, 16
        self.pixels = torch.randn(options.batch, 3, size, size, device=ranks.device)
        if self.engine.fp16_enabled():
            self.pixels = self.pixels.half()
        self.ids = torch.randint(1, 1000, (options.batch, words), device=ranks.device)
        self.lengths = torch.full((options.batch,), words, device=ranks.device)
        self.ranks = ranks
        self.seconds: list[float] = []

    def step(self) -> None:
        synchronize(self.ranks.device)
        started = time.perf_counter()
        encoded = self.engine(self.pixels, self.ids, self.lengths)
        loss = contrastive_loss(pooled_similarity(encoded.image, encoded.text), encoded.logit_scale).loss
        self.engine.backward(loss)
        self.engine.step()
        synchronize(self.ranks.device)
        self.seconds.append(self.ranks.maximum(time.perf_counter() - started))


def main(options: OverlapComm) -> None:
    """Time a step with overlap_comm off and on."""
    torch.set_num_threads(options.threads)
    ranks = start_ranks()
    sides = {overlap: Side(options, ranks, overlap) for overlap in (False, True)}
    for number in range(options.steps + 2):
        for overlap in (False, True) if number % 2 else (True, False):
            sides[overlap].step()
    off, on = (sides[overlap].seconds[2:] for overlap in (False, True))
    ratios = sorted(b / a for a, b in zip(off, on, strict=True))
    if ranks.is_main:
        quarter = len(ratios) // 4
        print(
            f"{options.setting}, {options.model}, {ranks.world_size} x {ranks.device.type} with {options.batch} pairs: "
            f"off {statistics.median(off):.3f} s, on {statistics.median(on):.3f} s, "
            f"on / off {statistics.median(ratios):.3f} (half of {len(ratios)} pairs of steps: "
            f"{ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f})",
            flush=True,
        )


if __name__ == "__main__":
    run_command(main, OverlapComm)
