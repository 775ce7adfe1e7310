"""Settings of what training reads, in what order, and how it augments images: an object each, passed on whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from filip.cli.option import option
from filip.text import tokenizer as clip_tokenizer
from filip.text.json_tokenizer import CaptionTokenizer, JsonTokenizer

# batches that each worker prepares ahead: more take memory and cannot help a source that stays slow
PREFETCH = 4
AHEAD = 8e9  # bytes that the workers of a rank prepare ahead, in /dev/shm, unless a batch of each takes more
CROP = 256e3  # bytes of a crop for the device: a web image of 290 px


@dataclass
class Source:
    """Shards of one data set, their caption side-cars, and how often its pairs are seen."""

    shards: str = option(
        MISSING,
        "folder of webdataset tars, as img2dataset writes them; or the address (s3://…, gs://…, hf://…, https://…) of "
        "a folder or of tars with braces",
    )
    captions: str | None = option(None, "folder of caption side-cars; null = the .txt files in the tars")
    weight: float = option(1.0, "passes over this source per epoch; 0.5 = a random half of it", at_least=0)
    manifest: str | None = option(None, "its manifest.json; the hash goes into the run and is compared on resume")


@dataclass
class AugmentConfig:
    """Random resized crop, flip and AutoAugment."""

    auto_augment: float = option(1.0, "share of the images with AutoAugment (ImageNet policy)", at_least=0, at_most=1)
    crop_scale_min: float = option(0.5, "smallest share that a random crop keeps (paper: open)", above=0, at_most=1)
    flip_probability: float = option(0.5, "0 if captions say what is left of what", at_least=0, at_most=1)


@dataclass
class DataConfig(AugmentConfig):
    """Settings of the model's input: the group ``data`` of the training configuration."""

    sources: list[Source] = option([], "list of {shards, captions, weight, manifest}")
    back_translation: bool = option(True, "draw the caption uniformly from the original and its translations")
    workers: int = option(2, "loader processes per rank; 0 = load in the training process", at_least=0)
    augment_on: str = option(
        "worker",
        "who resizes, flips and augments images; device: the GPU that trains, so that the workers only decode",
        choices=("worker", "device"),
    )
    cache: str = option("~/.cache/filip/tars", "folder of the copies of tars that are in a bucket or on a server")
    cache_gb: float = option(100.0, "room for these copies; those used last stay", above=0)
    shuffle_window_shards: int = option(16, "shards whose samples are shuffled among each other", at_least=1)
    reader_groups: int = option(
        1,
        "groups of ranks that share no shards: 1 on one machine, else the number of ranks or a divisor of it, so "
        "that a rank does not read from every shard; the order of pairs depends on it",
        at_least=1,
    )
    feature_cache: str | None = option(
        None,
        "folder in which the feature maps of a frozen model.image.stem are kept: every image passes through it once, "
        "and not once an epoch. For whole images: no crops, flips or AutoAugment",
    )


@dataclass(frozen=True)
class StreamConfig:
    """Settings of one rank's stream of batches."""

    data: DataConfig
    batch_size: int  # pairs per rank
    image_size: int  # pixels
    context_length: int = 77  # tokens, [BOS] and [EOS] included
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    feature_maps: Path | None = None  # folder of feature maps, to read instead of images
    json_tokenizer: JsonTokenizer | None = None  # for another vocabulary than CLIP's
    identities: tuple[tuple[str, str] | None, ...] = ()  # of the sources, where another rank has looked at their files

    @property
    def tokenizer(self) -> CaptionTokenizer:
        return self.json_tokenizer or clip_tokenizer

    @property
    def global_batch(self) -> int:
        """Return the pairs per contrastive batch over all ranks."""
        return self.batch_size * self.world_size


def batches_ahead(config: StreamConfig) -> int:
    """Return how many batches each worker prepares ahead: :data:`PREFETCH`, or what fits :data:`AHEAD`."""
    image = CROP if config.data.augment_on == "device" else 3 * config.image_size**2
    return max(1, min(PREFETCH, int(AHEAD / (max(1, config.data.workers) * config.batch_size * image))))
