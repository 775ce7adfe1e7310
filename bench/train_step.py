"""A training step of FILIP (all tokens, late interaction) against a step of open_clip's CLIP with its ClipLoss.

    python -m bench.train_step model=base batch=16 steps=5

Same images and captions, precision, threads and optimiser (torch's AdamW), steps interleaved so that other load on
the machine affects both. Each side gets its captions as its own pipeline produces them: open_clip pads to 77 tokens,
ours to the longest of the batch; ``equal_padding=true`` pads ours to 77 as well. Times are wall clock and
CPU time of this process; the ratios that count are those of FILIP to open_clip, of FILIP with the smooth maximum,
or compiled, to FILIP, and of both maxima to our own CLIP.
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from filip.cli.command import option, run_command
from filip.common import device as devices
from filip.models import ModelConfig, TextFeatures, build_model, load_preset
from late_interaction import SmoothMaximum, contrastive_loss, late_interaction, pooled_similarity
from late_interaction.backends import AnyBackend

CPU = torch.device("cpu")
WORDS = ["a", "the", "photo", "of", "on", "in", "red", "small", "old", "street", "dog", "boat", "tree", "two", "people"]


@dataclass
class TrainStep:
    """The options of the benchmark."""

    model: str = option("demo", "preset of filip/conf/model")
    batch: int = option(64, "pairs")
    steps: int = option(10, "timed steps of each side, after one warm-up step")
    device: str = option("cpu", "torch device")
    precision: str = option("fp32", "fp32, or bf16 or fp16 (autocast)")
    threads: int = option(1, "CPU threads")
    words: int = option(14, "mean words per caption; lengths vary from half to one and a half times that")
    equal_padding: bool = option(False, "pad our captions to open_clip's length too")
    backend: str = option("auto", "backend of the late interaction")
    compiled: bool = option(False, "also a FILIP whose blocks are compiled; the first step takes a minute or more")
    json: str | None = option(None, "also write the numbers to this file")


@dataclass
class Times:
    """The seconds per step."""

    wall: list[float]
    cpu: list[float]

    def median(self) -> tuple[float, float]:
        return statistics.median(self.wall), statistics.median(self.cpu)

    def over(self, other: Times) -> float:
        """Return the median of the ratios of CPU time within a round."""
        return statistics.median(a / b for a, b in zip(self.cpu, other.cpu, strict=True))


def captions(count: int, words: int) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(max(1, words // 2), words + words // 2 + 1, (count,), generator=generator)
    return [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (int(n),), generator=generator)) for n in lengths]


def autocast(options: TrainStep) -> torch.autocast:
    """Return the context of the forward pass. No loss scale is used: what overflows costs the same time."""
    dtype = torch.float16 if options.precision == "fp16" else torch.bfloat16
    return torch.autocast(torch.device(options.device).type, dtype, enabled=options.precision != "fp32")


def filip_step(
    config: ModelConfig,
    options: TrainStep,
    pixels: Tensor,
    texts: list[str],
    backend: AnyBackend,
    compiled: bool = False,
) -> Callable[[], Tensor]:
    """Return a closure that does one step and returns the loss."""
    from filip.text.tokenizer import tokenize

    model = build_model(config).train()
    model.to(pixels.device)
    if compiled:
        model.compile_blocks()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, lengths = (tensor.to(pixels.device) for tensor in tokenize(texts, config.text.context_length))
    if options.equal_padding:
        ids = torch.nn.functional.pad(ids, (0, config.text.context_length - ids.shape[1]))

    def step() -> Tensor:
        optimizer.zero_grad()
        with autocast(options):
            image, text = model.encode_image(pixels), model.encode_text(ids, lengths)
        if isinstance(text, TextFeatures):
            similarity = late_interaction(image, *text, backend=backend)
        else:
            similarity = pooled_similarity(image, text)
        loss = contrastive_loss(similarity, model.scale()).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def open_clip_step(config: ModelConfig, options: TrainStep, pixels: Tensor, texts: list[str]) -> Callable[[], Tensor]:
    """Return a step of open_clip's model of the same size, with its tokenizer and its loss."""
    import open_clip
    from open_clip.loss import ClipLoss
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    trunk: Any = build_model(config).image.trunk
    vision = CLIPVisionCfg(
        layers=len(trunk.blocks),
        width=trunk.embed_dim,
        head_width=trunk.embed_dim // trunk.blocks[0].attn.num_heads,
        patch_size=trunk.patch_embed.patch_size[0],
        image_size=config.image.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.text.context_length,
        vocab_size=config.text.vocab_size,
        width=config.text.width,
        heads=config.text.heads,
        layers=config.text.layers,
    )
    model = CLIP(embed_dim=config.embed_dim, vision_cfg=vision, text_cfg=text).train().to(pixels.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    loss_function = ClipLoss()
    ids = open_clip.tokenize(texts, context_length=config.text.context_length).to(pixels.device)

    def step() -> Tensor:
        optimizer.zero_grad()
        with autocast(options):
            image, text_features, scale = model(pixels, ids)
            loss = loss_function(image, text_features, scale)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def measure(sides: dict[str, Callable[[], Tensor]], steps: int, device: torch.device = CPU) -> dict[str, Times]:
    """Measure interleaved: one step of each side after the other, the first of each not counted."""
    times = {name: Times([], []) for name in sides}
    for number in range(steps + 1):
        for name, step in sides.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            devices.synchronize(device)
            if number:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].cpu.append(time.process_time() - cpu)
    return times


def steps_of(options: TrainStep) -> dict[str, Callable[[], Tensor]]:
    """Return the sides: open_clip's step, ours with either maximum, and ours with one vector per image and text."""
    torch.manual_seed(0)
    config, baseline = load_preset(options.model), load_preset(options.model)
    config.gradient_checkpointing = baseline.gradient_checkpointing = False
    baseline.interaction = "pooled"
    side = config.image.image_size
    pixels = torch.randn(options.batch, 3, side, side).to(options.device)
    texts = captions(options.batch, options.words)
    return {
        "open_clip": open_clip_step(config, options, pixels, texts),
        "filip": filip_step(config, options, pixels, texts, options.backend),
        "smooth": filip_step(config, options, pixels, texts, SmoothMaximum(0.05)),
        "our clip": filip_step(baseline, options, pixels, texts, options.backend),
        **({"compiled": filip_step(config, options, pixels, texts, options.backend, True)} if options.compiled else {}),
    }


def main(options: TrainStep) -> None:
    """Time a training step of FILIP and of open_clip."""
    torch.set_num_threads(options.threads)
    devices.choose_attention(torch.device(options.device), options.precision)
    sides = steps_of(options)
    times = measure(sides, options.steps, torch.device(options.device))
    print(
        f"{options.model}, batch {options.batch}, {options.precision}, {options.threads} threads, {options.steps} "
        "steps: median seconds per step, and medians of the ratios within a round"
    )
    print("| | wall | CPU | CPU / open_clip | CPU / filip | CPU / our clip |\n|---|--:|--:|--:|--:|--:|")
    for name, taken in times.items():
        wall, cpu = taken.median()
        ratios = " | ".join(f"{taken.over(times[other]):.2f}" for other in ("open_clip", "filip", "our clip"))
        print(f"| {name} | {wall:.3f} | {cpu:.3f} | {ratios} |")
    if options.json:
        numbers = {name: {"wall": t.wall, "cpu": t.cpu} for name, t in times.items()}
        Path(options.json).write_text(json.dumps({"options": vars(options), "seconds": numbers}, indent=2))


if __name__ == "__main__":
    run_command(main, TrainStep)
