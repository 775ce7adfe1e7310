"""Time `filip search` with a model in a public format: a CLIP ViT-B/32 of random weights, scored token-wise.

    python -m bench.search_public              # after `make demo`, whose training scenes are the pictures

It prints seconds by the clock and of CPU for the first search, which indexes the folder, for the next one, start of the
process and loading of 0.6 GB included, and for a query of a process that has the model and the index open.
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from filip.command import option, run_command
from filip.eval.scorer import load_scorer
from filip.export.hf_folder import clip_tokenizer
from filip.index.store import Index
from filip.models import ImageTowerConfig, ModelConfig, TextTowerConfig, build_model
from filip.search.ranking import query_of, rank

QUERIES = ("a red bicycle", "two cats on a sofa", "a lamp", "my dog at the beach", "snow", "an old bridge")


@dataclass
class PublicSearch:
    photos: str = option("results/demo/corpus/images/scenes", "folder of pictures")
    images: int = option(5000, "how many of them", at_least=1)


def main(study: PublicSearch) -> None:
    """Search copies of the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        photos, index, model = (Path(folder) / name for name in ("photos", "index", "clip"))
        photos.mkdir()
        for file in sorted(Path(study.photos).iterdir())[: study.images]:
            shutil.copy(file, photos)
        write_clip(model)
        given = [str(photos), QUERIES[0], f"model=hf:{model}", "tokens=true", f"index={index}", "device=cpu"]
        for name in ("first search", "next search"):
            wall, cpu = time.perf_counter(), children()
            subprocess.run([sys.executable, "-m", "filip", "search", *given], check=True, capture_output=True)
            print(f"{name}: {time.perf_counter() - wall:.1f} s, {children() - cpu:.1f} s of CPU", flush=True)
        scorer, opened, clocks = load_scorer(f"hf:{model}", tokens=True, fit="pad"), Index.open(index), []
        for text in (QUERIES[0], *QUERIES):  # the first once more: it maps the file
            wall, cpu = time.perf_counter(), time.process_time()
            rank(opened, scorer, query_of(scorer, text))
            clocks.append((time.perf_counter() - wall, time.process_time() - cpu))
        walls, cpus = (statistics.median(part) for part in zip(*clocks[1:], strict=True))
        size = sum(file.stat().st_size for file in index.iterdir())
        print(
            f"{len(opened):,} pictures, {size / 1e6:.0f} MB: a query {1e3 * walls:.0f} ms, {1e3 * cpus:.0f} ms of CPU, "
            f"{torch.get_num_threads()} threads"
        )
        opened.close()


def write_clip(folder: Path) -> None:
    """Write a CLIP ViT-B/32 as Hugging Face's transformers does."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    ends = {"bos_token_id": 49406, "eos_token_id": 49407}
    CLIPModel(CLIPConfig(text_config=ends)).save_pretrained(folder)
    small = ModelConfig(name="small", image=ImageTowerConfig(layers=1), text=TextTowerConfig(layers=1))
    clip_tokenizer(build_model(small)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    run_command(main, PublicSearch)
