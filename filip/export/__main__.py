"""Export a finished model, a run folder or a checkpoint in another format.

    filip export to=safetensors model=runs/a out=a.safetensors     # plain float32 of the newest checkpoint
    filip export to=hf model=a.safetensors out=exported/a          # a folder for transformers
    filip export to=onnx model=a.safetensors out=exported/a-onnx

docs/models.md shows how each format is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from filip.cli.command import MISSING, option, run_command
from filip.common.errors import UserError, first_line
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
    push: str = option("", "upload the folder to this repository of the hub, too: OWNER/NAME")


def export(config: Export) -> None:
    """Write a trained model, a run or a checkpoint in a format that other tools read."""
    chosen = FORMATS[config.to]
    check_output("out", config.out, chosen.out)
    if config.push:
        check_push(config.push, chosen.out)
    model = converted(config.model)
    source = read_source(config.model) if model is None else ModelSource(model, config.model)
    chosen.write(source, config.out)
    parameters = sum(p.numel() for p in source.model.parameters())
    say(f"wrote {config.out} ({config.to}): {parameters:,} parameters of {source.origin}")
    if config.push:
        upload(config.out, config.push)


def check_push(repository: str, kind: str) -> None:
    """Raise UserError for what the hub would not take, before anything is written."""
    from huggingface_hub import get_token

    if kind == "file":
        raise UserError(f"push={repository} uploads a folder: give to=hf, mv or onnx")
    if not get_token():
        raise UserError(f"push={repository} needs a token of the hub: run `hf auth login`, or set HF_TOKEN")


def upload(folder: str, repository: str) -> None:
    """Upload an exported folder. Raises UserError if the hub refuses it; the folder stays."""
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(repository, exist_ok=True)
        say(f"uploaded to {HfApi().upload_folder(repo_id=repository, folder_path=folder)}")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is written, and was not uploaded to {repository}: {first_line(error)}") from error


if __name__ == "__main__":
    run_command(export, Export)
