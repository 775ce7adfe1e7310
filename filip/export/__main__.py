"""Export a finished model, a run folder or a checkpoint in another format.

    filip export to=safetensors model=runs/a out=a.safetensors     # plain float32 of the newest checkpoint
    filip export to=hf model=a.safetensors out=exported/a          # a folder for transformers
    filip export to=onnx model=a.safetensors out=exported/a-onnx

docs/models.md shows how each format is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from filip.cli.command import MISSING, option, run_command
from filip.common.files import check_output
from filip.common.progress import say
from filip.eval.encoders import converted
from filip.export.formats import FORMATS
from filip.runs.source import ModelSource, read_source


@dataclass
class Export:
    """Options of the command."""

    model: str = option(
        MISSING,
        "a .safetensors file that training wrote, a run folder (its newest state), a checkpoint folder, or wukong:FILE",
    )
    out: str = option(MISSING, "what to write: a file (safetensors, compact), else a folder that does not exist yet")
    to: str = option("safetensors", f"format: {', '.join(FORMATS)}", choices=tuple(FORMATS))


def export(config: Export) -> None:
    """Write a trained model, a run or a checkpoint in a format that other tools read."""
    chosen = FORMATS[config.to]
    check_output("out", config.out, chosen.out)
    model = converted(config.model)
    source = read_source(config.model) if model is None else ModelSource(model, config.model)
    chosen.write(source, config.out)
    parameters = sum(p.numel() for p in source.model.parameters())
    say(f"wrote {config.out} ({config.to}): {parameters:,} parameters of {source.origin}")


if __name__ == "__main__":
    run_command(export, Export)
