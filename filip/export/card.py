"""Write the model card (README.md) of an export, from the training's records."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filip
from filip.eval.own_data import few
from filip.models import ImageTowerConfig
from filip.runs.source import ModelSource, portable
from filip.train.config import TrainConfig
from filip.train.losses import TERMS, resolve_weights
from filip.train.provenance import NOT_LEARNING, flat


def write_card(folder: Path, source: ModelSource, library: str, use: str) -> None:
    """Write README.md, and the attribution that has to be passed on with the weights."""
    (folder / "README.md").write_text(model_card(source, library, use), encoding="utf-8")
    for name, text in source.attributions.items():
        (folder / name).write_text(text, encoding="utf-8")


def model_card(source: ModelSource, library: str, use: str) -> str:
    """Return Markdown with the front matter that model hubs read.

    library: its name in the front matter. use: Python that loads the model in the folder of the card.
    """
    config, result = source.model.config, portable(source.result)
    what = (
        "FILIP: every patch of an image is matched with its most similar word of a text and every word with its most "
        "similar patch (arXiv 2111.07783)"
        if config.interaction == "token_wise"
        else "the CLIP baseline of FILIP: one vector per image and text"
    )
    run = result.get("run")
    name = run if run and run != TrainConfig().run else Path(source.origin).stem
    parameters = sum(p.numel() for p in source.model.parameters())
    rows, columns = source.model.image.grid
    parts = [
        "---",
        f"library_name: {library}",
        "pipeline_tag: zero-shot-image-classification",
        "tags: [clip, filip, vision-language]",
        *([f"license: {source.licence}"] if source.licence else []),
        "---",
        "",
        f"# {name}",
        "",
        f"{what}. Exported by [FILIP](https://arxiv.org/abs/2111.07783) {filip.__version__}.",
        "",
        *_introduction(source.card),
        "| | |",
        "|---|---|",
        f"| image tower | {_tower(config.image)}; {config.image.image_size} px, {rows} x {columns} patches |",
        f"| text tower | {_blocks(config.text.layers)} of width {config.text.width}, at most "
        f"{config.text.context_length} tokens |",
        f"| embeddings | {config.compared_dim} channels, unit length |",
        f"| parameters | {parameters:,} |",
        "",
        "## Use",
        "",
        f"```python\n{use}```",
        "",
        *(_known(source.card) if source.card else (*_data(result), *_recipe(result), *_licence(source))),
        *_citations(result, config.interaction),
    ]
    if source.tables:
        parts += ["## Results", "", "Tables of the study that this model belongs to.", ""]
        parts += [part for table in source.tables.values() for part in (table.strip(), "")]
    return "\n".join(parts).rstrip() + "\n"


def _tower(image: ImageTowerConfig) -> str:
    """Describe an image tower: timm's name means its size only as long as nothing changes it."""
    changed = [_blocks(image.layers)] if image.layers else []
    changed += [f"width {image.width}"] if image.width else []
    tower = " with ".join(part for part in (image.timm, " of ".join(changed)) if part)
    return f"{tower}, above {image.stem} up to its cells of {image.stem_stride} px" if image.stem else tower


def _blocks(count: int) -> str:
    return f"{count} blocks" if count > 1 else "1 block"


def _introduction(card: str) -> list[str]:
    """Return the beginning of a card, up to its first section, without its table."""
    text = card.partition("\n# ")[2].partition("\n## ")[0].partition("\n")[2]
    text = re.sub(r"^\|.*\n?", "", text, flags=re.MULTILINE).strip()
    return [text, ""] if text else []


def _known(card: str) -> list[str]:
    """Return the sections of a card."""
    _, mark, sections = card.partition("\n## ")
    return [f"{mark}{sections}".strip(), ""]


def _licence(source: ModelSource) -> list[str]:
    lines = []
    if source.started_from:
        names = ", which started from ".join(f"`{Path(name).stem}`" for name in source.started_from)
        stated = f" under {source.licence}" if source.licence else ", whose licence is with its publisher"
        lines.append(f"The weights are changed ones of {names}{stated}: it holds for these, too.")
    if source.attributions:
        files = " and ".join(f"`{name}`" for name in source.attributions)
        lines.append(
            f"The works, authors and licences of the training's pictures are in {files}: pass this on with the weights."
        )
    return ["## Licence and attribution", "", *lines, ""] if lines else []


def _citations(result: dict[str, Any], interaction: str) -> list[str]:
    """Return the papers of the model's comparison and of the terms of its loss."""
    loss = result.get("config", {}).get("loss", {})
    terms = {name: value for name, value in loss.items() if name in TERMS}
    trained = resolve_weights(terms, interaction) if terms else {}
    papers = [paper for name in (interaction, *trained) for paper in TERMS[name].citation]
    return ["## Citations", "", *(f"- {paper}" for paper in dict.fromkeys(papers)), ""]


def _data(result: dict[str, Any]) -> list[str]:
    sources = result.get("config", {}).get("data", {}).get("sources")
    if not sources:
        return ["## Data", "", "Not recorded with these weights.", ""]
    lines = ["## Data", ""]
    for source in sources:
        stated = f": {source['title']}, licence {source['license'] or 'not stated'}" if source["title"] else ""
        lines.append(f"- {source['shards']}, weight {source['weight']}{stated}")
    hashes = result.get("manifest_hashes", {})
    lines += [f"- manifest of {Path(place).parent.name or 'the shards'}: {hash}" for place, hash in hashes.items()]
    if "pairs" in result:
        warning = few(result["pairs"])
        lines.append(
            f"- {result['pairs']:,} pairs, {result['epochs']:.3g} passes over them{'; ' * bool(warning)}{warning}"
        )
    return [*lines, ""]


def _recipe(result: dict[str, Any]) -> list[str]:
    """Return the settings that decide the result of learning, if they differ from this version's defaults."""
    if not result.get("config"):
        return ["## Training", "", "Not recorded with these weights.", ""]
    defaults = dict(flat(asdict(TrainConfig())))
    skipped = (*NOT_LEARNING, "data.sources", "model")
    rows = [
        f"| `{name}` | {value} |"
        for name, value in flat(result["config"])
        if value != defaults.get(name, 0.0) and not any(name == s or name.startswith(f"{s}.") for s in skipped)
    ]
    lines = ["## Training", ""]
    if "steps" in result:
        code = f", code of commit {result['commit']}" if result.get("commit") else ""
        lines.append(f"{result['steps']:,} steps{code}.")
    last = (result.get("final") or {}).items()
    final = [f"| {name} | {value:.4g} |" for name, value in last if isinstance(value, float)]
    lines += ["", "| setting | value |", "|---|---|", *rows, ""]
    if final:
        lines += ["| last step | |", "|---|---|", *final, ""]
    return lines
