"""Logging of the first rank: TensorBoard, and a JSON and a text line per interval."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from filip.common.files import replacing
from filip.common.progress import clock, say

LOG = "log.jsonl"
# TensorBoard's tab "Custom Scalars": what all runs below --logdir have, in one chart each, side by side.
LAYOUT = {
    "Is it healthy?": {
        name: ["Multiline", [f"^{tag}$"]]
        for name, tag in {
            "loss": "loss/total",
            "gradient norm": "optimizer/grad_norm",
            "logit scale": "optimizer/logit_scale",
            "learning rate": "optimizer/lr",
            "pairs per second": "speed/pairs_per_second",
            "share of waiting for data": "speed/data_share",
            "MFU, where the GPU's peak is known": "speed/mfu",
            "memory, MB": "memory/peak_mb",
        }.items()
    },
    "Runs side by side": {
        "loss": ["Multiline", [r"^loss/total$"]],
        "in-batch accuracy, image to text": ["Multiline", [r"^accuracy/i2t$"]],
        "in-batch accuracy, text to image": ["Multiline", [r"^accuracy/t2i$"]],
        "evaluations while training": ["Multiline", [r"^eval/"]],
    },
}
# What a tag is, by its beginning; the longest that fits. TensorBoard shows it at the chart.
DESCRIPTIONS = {
    "loss/": "One term or direction of the loss, mean over ranks; log(batch) is the loss of a model that guesses.",
    "loss/total": "The weighted sum of the terms, mean over ranks. It falls; log(batch) is a model that guesses.",
    "loss_weight/": "The weight of this term of the loss in this step.",
    "accuracy/": "The share of this rank's pairs whose partner scores highest among all ranks' pairs.",
    "eval/": "A test set, by the model of this step. Higher is better.",
    "final/": "The number of the result file.",
    "optimizer/lr": "The learning rate: a linear warm-up, then a cosine to 0. lr_NAME is a group's.",
    "optimizer/grad_norm": "L2 norm of the whole gradient, unscaled. Peaks that grow announce a divergence.",
    "optimizer/logit_scale": "1 / temperature of the soft-max, at most 100. It rises slowly.",
    "optimizer/loss_scale": "The factor of fp16's loss; 1 in other precisions.",
    "optimizer/skipped_steps": "Steps so far that were left out because a gradient was not finite.",
    "optimizer/weight_norm": "L2 norm of all weights.",
    "trust_ratio/": "LAMB's ratio of a parameter's norm to its update's, over all parameters.",
    "speed/pairs_per_second": "Pairs that all ranks together trained on in a second.",
    "speed/data_share": "Share of a step in which ranks wait for images; a few per cent. More: data.workers.",
    "speed/mfu": "Arithmetic of both towers and of the loss's products over the GPU's peak by its data sheet.",
    "speed/": "Seconds of a step, or of a part of it.",
    "memory/": "MB on the rank that needs most; peak: since the start.",
    "data/": "Images or captions so far that were replaced or changed for this reason, over all ranks.",
    "fleet/": "The rank that waits longest for its images, and how long in a step.",
    "monitor/": "docs/monitors.md has the healthy value, what else it means, and what to try.",
    "tokens/": "Of the tokens in the loss, over 32 pairs of each rank; docs/monitors.md has the healthy value.",
    "vectors/": "Of the vectors in the loss, over 32 pairs of each rank; docs/monitors.md has the healthy value.",
    "time/": "Seconds of all steps so far, without evaluations and checkpoints.",
    "epoch": "Passes over the data so far.",
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
        if self.path.exists():  # a resumed run writes the lines after ``step`` again
            kept = [line for line, entry in _entries(self.path) if entry["step"] <= step]
            with replacing(self.path) as part:
                part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1, flush_secs=20)
        self.writer.add_custom_scalars(LAYOUT)
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Write one interval: every number to TensorBoard under its key, all to log.jsonl."""
        if not self.enabled:
            return
        for key, value in values.items():
            if isinstance(value, int | float):
                self._scalar(step, key, value)
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

    def _scalar(self, step: int, tag: str, number: float) -> None:
        """Write a number with its description, which ``add_scalar`` does not take."""
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

        known = max((start for start in DESCRIPTIONS if tag.startswith(start)), key=len, default=None)
        about = SummaryMetadata(summary_description=DESCRIPTIONS[known] if known else "")
        about.plugin_data.plugin_name = "scalars"
        value = Summary.Value(tag=tag, simple_value=number, metadata=about)
        self.writer._get_file_writer().add_summary(Summary(value=[value]), step)

    def settings(self, step: int, learning: dict[str, Any], whole: dict[str, Any], paper: dict[str, Any]) -> None:
        """Show the configuration as text, and what differs from the paper as a row of the tab "HParams".

        learning: the settings that decide learning, flat. whole: all. paper: those of the paper's base, flat.
        """
        if not self.enabled:
            return
        from torch.utils.tensorboard.summary import hparams

        rows = [(key, paper.get(key, ""), value) for key, value in learning.items() if paper.get(key, "") != value]
        table = "".join(f"| {key} | {theirs} | {ours} |\n" for key, theirs, ours in rows)
        table = f"| setting | experiment=base | this run |\n|-|-|-|\n{table}"
        self.writer.add_text("config/differs_from_the_paper", table, step)
        self.writer.add_text("config/whole", f"```\n{yaml.safe_dump(whole, sort_keys=False)}```", step)
        shown = {key: value if isinstance(value, int | float) else str(value) for key, _, value in rows}
        # into the run's own events: add_hparams would make another run of it
        for summary in hparams(shown, dict.fromkeys(("loss/total", "accuracy/i2t", "accuracy/t2i"), 0.0))[:2]:
            self.writer._get_file_writer().add_summary(summary, step)

    def final(self, step: int, final: dict[str, float]) -> None:
        """Record results as ``final/<name>``."""
        if self.enabled:
            for name, value in final.items():
                self._scalar(step, f"final/{name}", value)

    def close(self) -> None:
        if self.enabled:
            self.writer.close()
            self.file.close()


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return measurements and events of a log.jsonl, in order; a line cut short by a kill is left out."""
    measured: list[dict[str, Any]] = []
    events: list[dict[str, Any]] = []
    for _, entry in _entries(path):
        (events if "event" in entry else measured).append(entry)
    return measured, events


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "step" in entry:
            yield line, entry


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
