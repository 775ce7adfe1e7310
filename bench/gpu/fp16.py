"""DeepSpeed's fp16 block at ZeRO 1 to 3 over NCCL: overflow, kill -9, and a resumed run with the same bits."""

import json
from pathlib import Path
from typing import Any

from bench.gpu.finding import FAIL, PASS, SKIPPED, Finding, Place
from bench.gpu.trainings import killed_at, ranks_of, run
from filip.resources import shipped
from tests.support.squares import write_shards
from tests.support.training import losses, same_weights, series, train_arguments

SCALE_POWER = 24  # a scale that overflows at first, and comes down


def check(place: Place) -> Finding:
    """Check fp16 trainings; on a CPU, do one run in float32, which overflows nowhere."""
    data, ranks, steps = place.folder / "data", ranks_of(place), 12 if place.tiny else 40
    if not data.exists():
        write_shards(data, shards=3, per_shard=64)
    rows = []
    for stage in (1,) if place.tiny else (1, 2, 3):
        try:
            rows.append({"ZeRO": stage, "ranks": ranks, **one_stage(place, data, stage, ranks, steps)})
        except RuntimeError as error:
            rows.append({"ZeRO": stage, "ranks": ranks, "verdict": FAIL, "why": str(error)})
    if any(row["verdict"] == FAIL for row in rows):
        return Finding(FAIL, "; ".join(f"ZeRO {r['ZeRO']}: {r['why']}" for r in rows if r["verdict"] == FAIL), rows)
    if place.device.type == "cpu":
        return Finding(SKIPPED, "float32 on a CPU stood in for fp16: killed, resumed, the same bits", rows)
    alone = "" if ranks > 1 else "; one card, so NCCL had nothing to send"
    return Finding(
        PASS, f"skipped steps, killed after {steps // 2} of {steps} steps, resumed, the same bits{alone}", rows
    )


def one_stage(place: Place, data: Path, stage: int, ranks: int, steps: int) -> dict[str, Any]:
    folder = place.folder / f"zero{stage}"
    folder.mkdir(exist_ok=True)
    half = place.device.type != "cpu"
    overrides = [f"precision={'fp16' if half else 'fp32'}", f"zero_stage={stage}", f"max_steps={steps}",
                 "checkpoint.every_steps=5", f"global_batch={24 * ranks if 24 % ranks else 24}"]  # fmt: skip
    if half:
        settings = json.loads((shipped("ds_configs") / f"zero{stage}_fp16.json").read_text())
        settings["fp16"] |= {"initial_scale_power": SCALE_POWER, "hysteresis": 1}
        (folder / "fp16.json").write_text(json.dumps(settings))
        overrides.append(f"deepspeed={folder / 'fp16.json'}")
    whole, killed = folder / "whole", folder / "killed"
    run(place, train_arguments(data, whole, *overrides), folder / "whole.log", ranks)
    again = train_arguments(data, killed, *overrides)
    if not (killed / "model.json").exists():
        killed_at(place, again, folder / "killed.log", ranks, killed, steps // 2)
        run(place, again, folder / "killed.log", ranks)
    skipped = int(series(whole, "optimizer/skipped_steps")[-1]) if half else 0
    same = same_weights(whole / "model.safetensors", killed / "model.safetensors")
    same = same and losses(whole) == losses(killed)
    why = "" if same else "the resumed run differs from the undisturbed one"
    if half and not skipped:
        why = "no step overflowed, so the loss scale was not tried"
    loss = f"{losses(whole)[0]:.3f} to {losses(whole)[-1]:.3f}"
    return {"verdict": FAIL if why else PASS, "loss": loss, "skipped": skipped, "why": why}
