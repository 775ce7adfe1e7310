"""Sizes of the models and settings of the trainings, as these recorded them and as the paper has them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from filip.report.table import Cell, Column, Row, Table, text_cell
from filip.report.tables.tables_1_to_3 import Inputs

VITS = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
SIZES = {
    "image_tower": ("tower", "Image"),
    "image_size": ("px", "Image"),
    "patches": ("patches", "Image"),
    "image_layers": ("layers", "Image"),
    "image_width": ("width", "Image"),
    "image_heads": ("heads", "Image"),
    "text_layers": ("layers", "Text"),
    "text_width": ("width", "Text"),
    "text_heads": ("heads", "Text"),
    "context": ("tokens", "Text"),
    "embed_dim": ("embedding", ""),
}
TRAINING = {
    "data": "data",
    "batch": "batch",
    "length": "length",
    "image_size": "px",
    "optimizer": "optimiser",
    "base_lr": "base LR",
    "weight_decay": "weight decay",
    "warmup": "warm-up",
    "precision": "precision",
    "tokens": "tokens kept, %",
    "augmentation": "augmentation",
}


def build_models(inputs: Inputs) -> Table:
    """Build one row per pre-training run, then the paper's two models."""
    columns = [Column(key, title, group, unit="text") for key, (title, group) in SIZES.items()]
    rows = [inputs.row(run, _recorded(inputs, run, SIZES, sizes)) for run in inputs.study.rows("model_sizes")]
    rows += _stated(inputs.published_block("model_sizes"), "published")
    return Table("model_sizes", "Sizes of the models", columns, rows)


def build_trainings(inputs: Inputs) -> Table:
    """Build the rows of pre-trainings, fine-tunings, and the paper's of both kinds."""
    columns = [Column(key, title, unit="text") for key, title in TRAINING.items()]
    rows = []
    for run in inputs.study.rows("training_settings"):
        tuned = run in inputs.study.fine_tunes
        sources = inputs.study.training(run)["sources"]
        cells = _recorded(inputs, run, TRAINING, partial(trained_with, sources=sources, tuned=tuned))
        rows.append(inputs.row(run, cells, "fine-tuning" if tuned else "pre-training"))
    published = inputs.published_block("training_settings")
    rows += _stated(published, "published")
    notes = ["Peak learning rate: base LR times the square root of batch / 512."]
    return Table("training_settings", "Settings of the trainings", columns, rows, notes)


def _recorded(
    inputs: Inputs, run: str, keys: dict[str, Any], said: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Cell]:
    """Return the printed settings of the config that a training recorded; empty if it has not run."""
    training = inputs.results.training(run)
    if training is None:
        return dict.fromkeys(keys, Cell(reason=inputs.results.why("models", f"{run}.json")))
    return {key: text_cell(value) for key, value in said(training["config"]).items()}


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """Return the sizes of a training's model, by the keys of SIZES; None for what only timm knows."""
    image, text = config["model"]["image"], config["model"]["text"]
    named = re.match(r"vit_(tiny|small|base|large)_patch(\d+)", image["timm"])
    width, layers, heads = VITS[named[1]] if named else (None, None, None)
    patch = image["patch_size"] or (int(named[2]) if named else None)
    side = config["image_size"] or image["image_size"]
    tower = f"ViT-{named[1][0].upper()}/{patch}" if named and not image["width"] else image["timm"]
    return {
        "image_tower": tower,
        "image_size": side,
        "patches": (side // patch) ** 2 if patch else None,
        "image_layers": image["layers"] or layers,
        "image_width": image["width"] or width,
        "image_heads": image["heads"] or heads,
        "text_layers": text["layers"],
        "text_width": text["width"],
        "text_heads": text["heads"],
        "context": text["context_length"],
        "embed_dim": config["model"]["embed_dim"],
    }


def trained_with(config: dict[str, Any], sources: list[str], tuned: bool) -> dict[str, Any]:
    """Return how a training runs, by the keys of TRAINING."""
    data, optimizer, batch = config["data"], config["optimizer"], config["global_batch"]
    augmentation = [
        *(["AutoAugment"] if data["auto_augment"] else []),
        *(["back-translation"] if data["back_translation"] else []),
    ]
    pooled = config["model"]["interaction"] == "pooled"
    return {
        "data": ", ".join(sources),
        "batch": f"{batch:,}" if batch else f"{config['batch_per_rank']} per rank",
        "length": f"{config['epochs']:g} epochs" if config["epochs"] else f"{config['max_steps']:,} steps",
        "image_size": config["image_size"] or (None if tuned else config["model"]["image"]["image_size"]),
        "optimizer": {"lamb": "LAMB", "adamw": "AdamW"}.get(optimizer["name"], optimizer["name"]),
        "base_lr": f"{optimizer['base_lr']:g}",
        "weight_decay": f"{optimizer['weight_decay']:g}",
        "warmup": f"{optimizer['warmup_steps']:,} steps",
        "precision": config["precision"],
        "tokens": None if pooled else f"{100 * config['token_keep_ratio']:g}",
        "augmentation": ", ".join(augmentation) or "none",
    }


def _stated(block: dict[str, Any], section: str) -> list[Row]:
    """Return the rows of a block of published settings, as written; empty where the paper leaves one open."""
    rows = []
    for label, values in block.items():
        if label != "columns":
            stated = dict(zip(block["columns"], values, strict=True))
            cells = {
                key: Cell(reason="not reported") if value is None else Cell(str(value)) for key, value in stated.items()
            }
            rows.append(Row(label, "paper", cells, section))
    return rows
