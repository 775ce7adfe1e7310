"""Keep the feature maps of a frozen network on disk: each image passes through it once, and not once an epoch.

One file a shard, ``<name of the tar>-<state>.npy``: float16 ``[images, channels, rows, columns]``, an image for each
usable sample in the order of the index. The state is the tar's and its used part's, so that the file of a
shard that has changed is never read; the folder is one for each network and image size. An image that could not be
decoded has NaN everywhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from filip.common.errors import UserError
from filip.common.files import digest
from filip.data.remote_tars import state_of
from filip.loading.pair_index import SourceIndex


class NoFeatures(ValueError):
    """Error: the image of a sample could not be decoded when the maps were made."""


def map_path(folder: Path, index: SourceIndex, shard: int) -> Path:
    """Return where the feature maps of a shard's images are."""
    tar, start = index.tars[shard], int(index.starts[shard])
    used = index.offset[start : start + int(index.counts[shard])]
    state = state_of(tar) or ()
    return folder / f"{tar.stem}-{digest([str(tar.resolve()), *state, used.tolist()])[:16]}.npy"


def open_maps(path: Path) -> np.ndarray:
    """Return a shard's maps, mapped into memory."""
    try:
        maps: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"cannot read the feature maps {path}: {error}; delete the file and start again, and they are made anew"
        ) from error
    return maps
