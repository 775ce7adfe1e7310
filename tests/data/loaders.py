"""Small loaders for tests, and what they gave."""

import dataclasses
from typing import Any

import torch

from filip.data.loading.config import DataConfig, Source, StreamConfig
from filip.data.loading.loader import PairLoader, build_loader
from tests.data.pair_shards import Pairs

DATA_FIELDS = {field.name for field in dataclasses.fields(DataConfig)}


def loader(pairs: Pairs | list[Source], *, epoch: int = 0, transform: Any = None, **options: Any) -> PairLoader:
    """Make a loader with small settings; options: fields of DataConfig and of StreamConfig."""
    settings = {"batch_size": 4, "image_size": 16, "seed": 3, "shuffle_window_shards": 2, "workers": 0} | options
    data = {name: settings.pop(name) for name in list(settings) if name in DATA_FIELDS}
    sources = [pairs.source] if isinstance(pairs, Pairs) else pairs
    made = build_loader(StreamConfig(DataConfig(sources=sources, **data), **settings), transform=transform)
    if epoch:
        made.load_state_dict(made.state_dict() | {"epoch": epoch})
    return made


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def assert_same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name, value in x.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, y[name]), name
            else:
                assert value == y[name], name
