"""Logging of the first rank: TensorBoard, and a JSON and a text line per interval."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from filip.common.progress import clock, say

LOG = "log.jsonl"
# TensorBoard's tab "Custom Scalars": what all runs below --logdir have, in one chart each, side by side.
LAYOUT = {
    "Runs side by side": {
        "loss": ["Multiline", [r"^loss/total$"]],
        "in-batch accuracy, image to text": ["Multiline", [r"^accuracy/i2t$"]],
        "in-batch accuracy, text to image": ["Multiline", [r"^accuracy/t2i$"]],
        "evaluations while training": ["Multiline", [r"^eval/"]],
        "logit scale": ["Multiline", [r"^optimizer/logit_scale$"]],
        "pairs per second": ["Multiline", [r"^speed/pairs_per_second$"]],
    }
}


class Telemetry:
    """A writer for the first rank; elsewhere every call does nothing."""

    def __init__(self, run_dir: Path, enabled: bool, step: int) -> None:
        """Open the files. ``step``: where the run starts; later lines of an earlier attempt are dropped."""
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / LOG
        _drop_after(self.path, step)
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1, flush_secs=20)
        self.writer.add_custom_scalars(LAYOUT)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Write one interval: every number to TensorBoard under its key, all to log.jsonl."""
        if not self.enabled:
            return
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        for key, value in numbers.items():
            self.writer.add_scalar(key, value, step)
        self.file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
        self.file.flush()

    def event(self, step: int, kind: str, text: str) -> None:
        """Record something worth a sentence: resumed, saved, an alert of the watchdog."""
        if not self.enabled:
            return
        say(text)
        self.writer.add_text(f"events/{kind}", text, step)
        self.file.write(json.dumps({"step": step, "time": time.time(), "event": kind, "text": text}) + "\n")
        self.file.flush()

    def images(self, step: int, tag: str, pixels: np.ndarray) -> None:
        """Write ``pixels``, uint8 [H, W, 3]."""
        if self.enabled:
            self.writer.add_image(tag, pixels, step, dataformats="HWC")

    def text(self, step: int, tag: str, text: str) -> None:
        """Write Markdown, for TensorBoard only."""
        if self.enabled:
            self.writer.add_text(tag, text, step)

    def hparams(self, step: int, settings: dict[str, Any], final: dict[str, float]) -> None:
        """Record the run as a row of the tab "HParams": its settings and its results (``final/<name>``)."""
        if not self.enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        shown = {key: value if isinstance(value, int | float) else str(value) for key, value in settings.items()}
        metrics = {f"final/{name}": value for name, value in final.items()}
        # into the run's own events: add_hparams would make another run of it
        for summary in hparams(shown, metrics):
            self.writer._get_file_writer().add_summary(summary, step)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.enabled:
            self.writer.close()
            self.file.close()


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return measurements and events of a log.jsonl, in order; a line cut short by a kill is left out."""
    measured: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "step" in entry:
            (events if "event" in entry else measured).append(entry)
    return measured, events


def scalars(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Return what TensorBoard shows of a benchmark: its one value, R@1 each way, or the value by each ranking.

    Also how alike the patches of an image are, of a token-wise model.
    """
    if "value" in numbers:
        return {"": numbers["value"]}
    cosine = {"_patch_cosine": numbers["patch_cosine"]} if "patch_cosine" in numbers else {}
    parts = {name: part for name, part in numbers.items() if isinstance(part, dict)}
    recalls = {f"_{way}_r1": part["r1"] for way, part in parts.items() if "r1" in part}
    return cosine | recalls | {f"_{by}": part["value"] for by, part in parts.items() if "value" in part}


def score_on(card: str, evaluated: Mapping[str, float]) -> float:
    """Return the score of an evaluation while training on a card: its value, or the mean of its R@1 both ways,
    or that by the mean of both similarities.

    evaluated: the numbers of all cards under their TensorBoard names. NaN if the card is not among them.
    """
    seen = [value for key, value in evaluated.items() if re.fullmatch(rf"eval/{re.escape(card)}(_\w+_r1|_mean)?", key)]
    return sum(seen) / len(seen) if seen else math.nan


def text_line(step: int, steps: int, values: dict[str, Any], eta_seconds: float) -> str:
    """Format a line of the log; ``values`` as given to :meth:`Telemetry.record`."""
    rate = 1 / values["speed/seconds_per_step"]
    parts = [
        f"training: {step:,} of {steps:,} steps, {rate:.3g} steps/s, {clock(eta_seconds)} left, "
        f"loss {values['loss/total']:.4f}",
        f"lr {values['optimizer/lr']:.2e}",
        f"scale {values['optimizer/logit_scale']:.1f}",
        f"{values['speed/pairs_per_second']:.0f} pairs/s",
        f"data {100 * values['speed/data_share']:.0f}%",
        f"{values['memory/peak_mb']:.0f} MB",
    ]
    if "speed/mfu" in values:
        parts.insert(4, f"MFU {100 * values['speed/mfu']:.0f}%")
    if "accuracy/i2t" in values and "accuracy/t2i" in values:
        parts.insert(1, f"acc {100 * values['accuracy/i2t']:.1f}/{100 * values['accuracy/t2i']:.1f}%")
    if values.get("optimizer/skipped_steps"):
        parts.insert(-3, f"skipped {values['optimizer/skipped_steps']}")
    return "  ".join(parts)


def _drop_after(path: Path, step: int) -> None:
    """Keep only lines up to ``step``: a resumed run writes the rest again."""
    if not path.exists():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError):
            continue  # a line cut short by a kill
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(part, path)
