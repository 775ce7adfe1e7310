"""Compare steps of the paper's two models with open_clip's of the same size, and with the card's peak."""

import gc
from typing import Any

import torch

from bench.gpu.finding import FAIL, PASS, Finding, Place
from bench.train_step import TrainStep, measure, steps_of
from filip.models import build_model, load_preset
from filip.train.counts import encoder_flops, passes
from filip.train.hardware import peak_flops

WORDS, CONTEXT = 18, 77
SIDES = ("open_clip", "filip", "smooth", "our clip")  # of bench.train_step
SLOWER, MFU = 1.05, 0.4  # goals: a factor of open_clip's time, a share of the peak (large, bf16)


def check(place: Place) -> Finding:
    cases = [("tiny", 4)] if place.tiny else [("base", 512), ("large", 128)]
    peak = peak_flops(place.name, "bf16")
    rows: list[dict[str, Any]] = []
    for model, batch in cases:
        with torch.device("meta"):
            built = build_model(load_preset(model))
        flops = sum(encoder_flops(built, WORDS, CONTEXT).values()) * passes(False, 1)
        for precision in ("bf16",) if place.tiny else ("fp16", "bf16"):
            rows += measured(place, model, precision, batch, flops, peak)
    ratios = [row["of open_clip"] for row in rows if row.get("side") == "filip"]
    if len(ratios) < len(rows) / len(SIDES):
        return Finding(FAIL, "a model does not fit, even with one pair", rows)
    said = f"{min(ratios):.2f} to {max(ratios):.2f} times open_clip's step (goal {SLOWER})"
    reached = [row["MFU"] for row in rows if (row["model"], row["side"]) == ("large", "filip") and "MFU" in row]
    if reached:
        said += f"; MFU of large up to {max(reached):.0%} (goal {MFU:.0%})"
    missed = max(ratios) > SLOWER or (reached and max(reached) < MFU)
    return Finding(FAIL if missed and not place.tiny else PASS, said, rows)


def measured(
    place: Place, model: str, precision: str, batch: int, flops: float, peak: float | None
) -> list[dict[str, Any]]:
    """Return a row for each side, with the largest batch that fits: ``batch`` or a half, a quarter … of it."""
    while batch >= 1:
        options = TrainStep(
            model=model, batch=batch, precision=precision, device=str(place.device), words=WORDS - 2, steps=10
        )
        if place.tiny:
            options.steps = 1
        try:
            times = measure(steps_of(options), options.steps, place.device)
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
            batch //= 2
            continue
        rows = []
        for side, taken in times.items():
            seconds = taken.median()[0]
            row = {"model": model, "precision": precision, "pairs": batch, "side": side, "ms": 1e3 * seconds}
            row["of open_clip"] = seconds / times["open_clip"].median()[0]
            if peak and side == "filip":
                row["MFU"] = flops * batch / seconds / peak
            rows.append(row)
        return rows
    return [{"model": model, "precision": precision, "side": "", "why": "out of memory with one pair"}]
