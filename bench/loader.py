"""Samples per second of the loader and of open_clip's webdataset pipeline: same shards, same augmentation.

The loader does everything (``worker``), or decodes and leaves the rest to the device (``device``, data.augment_on);
``decoder`` only decodes the same files from memory. All run in one process without workers, so a figure is per core.
Seconds are the processor's. Rounds of one whole epoch alternate; the first does not count.

    python -m bench.loader                              # photographs of 256 px to 224, and 64 px to 48
    python -m bench.loader shards=DIR captions=DIR image_size=224
"""

import functools
import io
import json
import random
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import open_clip_train.data as open_clip_data
import torch
import webdataset as wds
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision import transforms as tv
from webdataset.tariterators import tar_file_expander

from filip.cli.command import option, run_command
from filip.images.pixels import CLIP_MEAN, CLIP_STD
from filip.loading.config import DataConfig, Source, StreamConfig
from filip.loading.loader import build_loader
from filip.loading.transforms import decode
from filip.sets.tar_index import scan_tar

CROP_SCALE = (0.5, 1.0)
GOAL = 3  # times the images a core when the device resizes and augments, with AutoAugment


@dataclass
class LoaderBench:
    shards: str | None = option(None, "folder with tars; null: make some from scikit-learn's two photographs")
    captions: str | None = option(None, "folder with side-cars; null: the .txt files in the tars")
    image_size: int = option(224, "side that the model takes; with shards=null both 224 and 48 are measured")
    pairs: int = option(1500, "pairs to make where shards=null")
    batch_size: int = option(64, "pairs per batch")
    rounds: int = option(7, "timed epochs of each pipeline")
    out: str | None = option(None, "also write the result to this JSON file")


def main(config: LoaderBench) -> None:
    """Measure all and print the ratios of the medians."""
    torch.set_num_threads(1)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        if config.shards is not None:
            cases = [(config.shards, config.captions, config.image_size)]
        else:
            cases = []
            for side, image_size in ((256, 224), (64, 48)):
                make_shards(Path(folder) / str(side), side, config.pairs)
                cases.append((str(Path(folder) / str(side)), None, image_size))
        for shards, captions, image_size in cases:
            for auto_augment in (False, True):
                results.append(compare(config, shards, captions, image_size, auto_augment))
                print(sentence(results[-1]), flush=True)
    if config.out is not None:
        Path(config.out).write_text(json.dumps(results, indent=2))


def compare(
    config: LoaderBench, shards: str, captions: str | None, image_size: int, auto_augment: bool
) -> dict[str, object]:
    """Measure all pipelines on the same shards, interleaved."""
    batch, sources = config.batch_size, [Source(shards, captions)]
    worker, device = (
        build_loader(
            StreamConfig(DataConfig(auto_augment, sources=sources, workers=0, augment_on=place), batch, image_size)
        )
        for place in ("worker", "device")
    )
    theirs = open_clip_loader(shards, image_size, auto_augment, batch)
    files = [file for tar in sorted(Path(shards).glob("*.tar")) for file in images_in(tar)]
    pipelines: dict[str, Callable[[], int]] = {
        "worker": lambda: sum(len(batch["key"]) for batch in worker),
        "device": lambda: sum(len(batch["key"]) for batch in device),
        "decoder": lambda: sum(len(decode(file)) > 0 for file in files),
        "open_clip": lambda: sum(len(images) for images, _ in theirs),
    }
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    for round_number in range(config.rounds + 1):
        for name, run in pipelines.items():
            started = time.process_time()
            n = run()
            if round_number:
                rates[name].append(n / (time.process_time() - started))
        print(f"  round {round_number} of {config.rounds}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "image_size": image_size,
        "auto_augment": auto_augment,
        "samples_per_second_per_core": medians,
        "rounds": rates,
        "ratio": medians["worker"] / medians["open_clip"],
        "decoding_only": medians["device"] / medians["worker"],
    }


def sentence(result: dict[str, object]) -> str:
    medians = result["samples_per_second_per_core"]
    assert isinstance(medians, dict)
    rates = ", ".join(f"{name} {rate:.0f}/s" for name, rate in medians.items())
    return (
        f"{result['image_size']} px, AutoAugment {'on ' if result['auto_augment'] else 'off'}: {rates} per core; "
        f"worker / open_clip {result['ratio']:.2f}, device / worker {result['decoding_only']:.2f} (goal {GOAL})"
    )


def images_in(tar: Path) -> list[bytes]:
    data = tar.read_bytes()
    members = (member for member in scan_tar(tar)[0] if member.name.endswith((".jpg", ".png", ".webp")))
    return [data[member.offset : member.offset + member.size] for member in members]


def open_clip_loader(shards: str, image_size: int, auto_augment: bool, batch_size: int) -> wds.WebLoader:
    """Build open_clip's own training pipeline with torchvision's version of our augmentation."""
    steps = [
        tv.RandomResizedCrop(image_size, CROP_SCALE, interpolation=tv.InterpolationMode.BICUBIC),
        tv.RandomHorizontalFlip(),
        *([tv.AutoAugment(interpolation=tv.InterpolationMode.BILINEAR)] if auto_augment else []),
        tv.ToTensor(),
        tv.Normalize(CLIP_MEAN, CLIP_STD),
    ]
    tars = sorted(Path(shards).glob("*.tar"))
    images = sum(m.name.endswith((".jpg", ".png", ".webp")) for tar in tars for m in scan_tar(tar)[0])
    args = Namespace(
        train_data="::".join(map(str, tars)),
        train_num_samples=images,
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        seed=0,
        batch_size=batch_size,
        workers=0,
        world_size=1,
    )
    # webdataset from 0.2.90 on marks the end of a shard with an entry that makes open_clip fail; the rest is unchanged.
    open_clip_data.tar_file_expander = functools.partial(tar_file_expander, eof_value=None)
    info = open_clip_data.get_wds_dataset(
        args, tv.Compose(steps), True, floor=True, tokenizer=open_clip.get_tokenizer("ViT-B-32")
    )
    return info.dataloader


def make_shards(folder: Path, side: int, pairs: int, per_shard: int = 250) -> None:
    """Write crops of two real photographs, shorter side ``side`` px, JPEG, with captions of eight words."""
    folder.mkdir(parents=True)
    photos = [Image.fromarray(np.asarray(photo)) for photo in load_sample_images().images]
    rng = random.Random(0)
    words = ["a", "photo", "of", "the", "old", "temple", "and", "a", "red", "flower", "in", "its", "garden"]
    for shard in range((pairs + per_shard - 1) // per_shard):
        with wds.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for i in range(shard * per_shard, min(pairs, (shard + 1) * per_shard)):
                photo = rng.choice(photos)
                width, height = rng.randint(300, photo.width), rng.randint(260, photo.height)
                left, top = rng.randint(0, photo.width - width), rng.randint(0, photo.height - height)
                scale = side / min(width, height)
                size = (max(side, round(width * scale)), max(side, round(height * scale)))
                image = photo.resize(size, Image.Resampling.LANCZOS, (left, top, left + width, top + height))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=95)
                caption = " ".join(rng.choice(words) for _ in range(8))
                writer.write({"__key__": f"{i:09d}", "jpg": buffer.getvalue(), "txt": caption, "json": b"{}"})


if __name__ == "__main__":
    run_command(main, LoaderBench)
