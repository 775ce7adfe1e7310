"""Print our studies' settings next to the paper's and to those of its authors' later code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from timm.layers import Attention

from filip.cli.command import run_command
from filip.data.cards import load_source
from filip.models import build_model
from filip.study.study import Study, load_study
from filip.train.engine import read_settings
from filip.train.losses import resolve_weights
from filip.train.optimizers import make_optimizer
from filip.train.provenance import flat

STUDIES = Path("workflow/config")  # of a checkout, as for `filip study check`
WIDE = 40  # characters of a cell that may stick out of its column
# section of filip/conf/paper.yaml: study and training of each of its columns
TRAININGS = {
    "pre-training": [("base", "filip_base"), ("large", "filip_large"), ("ablation", "filip")],
    "fine-tuning": [("base", "filip_base_coco"), ("large", "filip_large_coco")],
}


@dataclass
class Paper:
    pass


@dataclass(frozen=True)
class Row:
    """A setting: the paper's values (None where it is silent), ours, what ours should be, and notes."""

    setting: str
    paper: list[Any] | None
    ours: list[Any]
    expected: list[Any]
    notes: str
    later: str = ""

    @property
    def state(self) -> str:
        """Return "" for the paper's value, "open" or "ours" for a value that the file states, else "DIFFERENT"."""
        if self.ours != self.expected:
            return "DIFFERENT"
        return "open" if self.paper is None else "" if self.ours == self.paper else "ours"


def main(config: Paper) -> None:
    """The settings of base, large and ablation next to the paper's and its authors' later code."""
    for section, rows in compare().items():
        names = " / ".join(study for study, _ in TRAININGS[section])
        lines = [(section, "paper", "their later code", names, "")]
        for row in rows:
            paper = "open" if row.paper is None else _short(row.paper)
            notes = ": ".join(filter(None, (row.state, row.notes)))
            lines.append((row.setting, paper, row.later, _short(row.ours), notes))
        widths = [max(len(line[column]) for line in lines if len(line[column]) < WIDE) for column in range(4)]
        for line in lines:
            print(
                "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip()
            )
        print()


def compare() -> dict[str, list[Row]]:
    """Return the rows of ``filip/conf/paper.yaml`` by section, with the values of the studies' trainings."""
    known = yaml.safe_load(resources.files("filip.conf").joinpath("paper.yaml").read_text(encoding="utf-8"))
    sections = {}
    for section, entries in known.items():
        columns = [
            resolved_settings(load_study(STUDIES / f"{name}.yaml"), training) for name, training in TRAININGS[section]
        ]
        sections[section] = [_row(entry, columns) for entry in entries]
    return sections


def _row(entry: dict[str, Any], columns: list[dict[str, Any]]) -> Row:
    def each(key: str) -> list[Any] | None:
        if key not in entry:
            return None
        value = entry[key]
        return value if isinstance(value, list) else [value] * len(columns)

    ours = [column[entry["setting"]] for column in columns]
    expected = each("ours") or each("paper") or []
    return Row(entry["setting"], each("paper"), ours, expected, entry.get("reason", ""), str(entry.get("later", "")))


def _short(values: list[Any]) -> str:
    return " / ".join(str(value) for value in (values[:1] if len(set(map(str, values))) == 1 else values))


def resolved_settings(study: Study, training: str) -> dict[str, Any]:
    """Return the settings of a training as Hydra resolves them, and what follows from model, launch and sources."""
    config, launch = study.resolved(training), study.launch_settings(training)
    with torch.device("meta"):
        model = build_model(config.model)
    image = model.image
    gpus = launch.get("nodes", 1) * launch["ranks_per_node"]
    sources = study.training(training)["sources"]
    cards = [load_source(name) for name in sources]
    lamb = make_optimizer(model, config.optimizer).param_groups[0]
    return {
        **dict(flat(asdict(config))),
        "loss": ", ".join(resolve_weights(config.loss, config.model.interaction)),
        "image layers": image.depth,
        "image width": image.width,
        "image heads": next(m.num_heads for m in image.modules() if isinstance(m, Attention)),
        "patches": image.grid[0] * image.grid[1],
        "text layers": config.model.text.layers,
        "text width": config.model.text.width,
        "text heads": config.model.text.heads,
        "GPUs": gpus,
        "pairs per GPU": (config.global_batch or 0) // gpus,
        "transport_dtype": config.precision if config.transport_dtype == "auto" else config.transport_dtype,
        "betas": ", ".join(map(str, lamb["betas"])),
        "epsilon": lamb["eps"],
        "gradient clipping": read_settings(config)["gradient_clipping"],
        "sources": ", ".join(sources),
        **{key: _only({rule(card) for card in cards}) for key, rule in _OF_CARDS.items()},
    }


_OF_CARDS = {
    "shorter side in px": lambda card: card.image_rules.min_side,
    "aspect ratio": lambda card: card.image_rules.max_aspect,
    "equal captions": lambda card: card.text_rules.max_repeats,
    "through": lambda card: ", ".join(card.back_translation.pivots) if card.back_translation else None,
}


def _only(values: set[Any]) -> Any:
    return values.pop() if len(values) == 1 else sorted(values, key=str)


if __name__ == "__main__":
    run_command(main, Paper)
