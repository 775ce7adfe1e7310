"""Small test sets in the exact formats on disk, and a small model to run them with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from filip.cli.command import run_command
from filip.eval.__main__ import Evaluation
from filip.eval.__main__ import main as evaluate
from filip.models import ImageTowerConfig, ModelConfig, TextTowerConfig, build_model, save_model
from tests.support.shards import encoded, write_tar

SIDE = 32
ARCHITECTURE = "ViT-B-32-shallow"  # an architecture of open_clip, see write_open_clip


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """Return a smooth random image: different seeds look different at any resolution."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def write_split(split: Path, shards: Sequence[Sequence[tuple[str, bytes]]]) -> None:
    """Write a split's tars, each of (name, content), and their number."""
    for number, members in enumerate(shards):
        write_tar(split / f"{number}.tar", members)
    (split / "nshards.txt").write_text(f"{len(shards)}\n")


def write_webdataset(
    folder: Path,
    classes: Sequence[str] | None,
    targets: Sequence[int | list[str]],
    split: str = "test",
    shards: int = 2,
    masks: bool = False,
    codes: Sequence[str] | None = None,
) -> list[Image.Image]:
    """Write CLIP_benchmark's layout; targets: labels, or lists of captions without ``classes``. Return the images."""
    images = [picture(i) for i in range(len(targets))]
    folder.mkdir(parents=True, exist_ok=True)
    if classes is None:
        (folder / "dataset_type.txt").write_text("retrieval\n")
    else:
        (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    per, tars = -(-len(targets) // shards), []
    for shard in range(shards):
        members: list[tuple[str, bytes]] = []
        for i in range(shard * per, min((shard + 1) * per, len(targets))):
            target = targets[i]
            extension, text = ("cls", str(target)) if isinstance(target, int) else ("txt", "\n".join(target))
            members += [(f"s{i:07d}.png", encoded(images[i])), (f"s{i:07d}.{extension}", text.encode())]
            about = {"code": codes[i] if codes is not None else f"U{i}"}
            members.append((f"s{i:07d}.json", json.dumps(about).encode()))
            if masks:
                mask = Image.new("L", images[i].size, 0)
                mask.paste(255, (SIDE // 2, 0, SIDE, SIDE))
                members.append((f"s{i:07d}.mask.png", encoded(mask)))
        tars.append(members)
    write_split(folder / split, tars)
    return images


def tiny_config(interaction: str = "token_wise", embed_dim: int = 16) -> ModelConfig:
    return ModelConfig(
        name="tiny",
        image=ImageTowerConfig(image_size=SIDE, patch_size=8, width=32, layers=1, heads=2),
        text=TextTowerConfig(width=32, layers=1, heads=2),
        embed_dim=embed_dim,
        interaction=interaction,
    )


def write_model(path: Path, interaction: str = "token_wise", seed: int = 0) -> str:
    torch.manual_seed(seed)
    save_model(path, build_model(tiny_config(interaction)), {})
    return str(path)


def run_protocol(protocol: str, given: Sequence[str]) -> dict[str, Any]:
    """Run ``filip eval`` for one protocol with the arguments ``given``; return its results, those of all cards as one.

    They are in the folder ``out=``, in which no other run with other settings should write.
    """
    run_command(evaluate, Evaluation, argv=[f"protocols=[{protocol}]", *given])
    out = Path(next(word for word in given if word.startswith("out=")).removeprefix("out="))
    results = [json.loads(file.read_text()) for file in sorted((out / protocol).glob("*.json"))]
    benchmarks = {name: numbers for result in results for name, numbers in result["benchmarks"].items()}
    return {**results[0], "benchmarks": benchmarks}


def write_open_clip(folder: Path) -> str:
    """Save random weights for open_clip's ViT-B-32 code with two layers instead of twelve, which is quicker."""
    import open_clip

    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 2
    (folder / "architectures").mkdir()
    (folder / "architectures" / f"{ARCHITECTURE}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "architectures")
    torch.manual_seed(0)
    path = folder / "random.pt"
    torch.save(open_clip.create_model(ARCHITECTURE).state_dict(), path)
    return str(path)
