"""Miniature copies of the public data sets, each in the format that it is published in.

Every image shows its class as a colour (:func:`colour`), so that a test knows the truth from the pixels and
not from the label that a reader made of the files. The test split has one image of every class; the training
split, where the format has one, an image of the second class and one of the first, or of every class where the
readers make the list of classes from it.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

STEP = 25  # between colour levels: more than JPEG disturbs


def colour(number: int) -> tuple[int, int, int]:
    """Return three decimal digits as three levels."""
    return (number // 100 * STEP + 12, number // 10 % 10 * STEP + 12, number % 10 * STEP + 12)


def number_of(mean: np.ndarray) -> int:
    """Return the inverse of :func:`colour` from the mean colour of an image (0..255)."""
    hundreds, tens, ones = np.rint((mean - 12) / STEP).astype(int)
    return int(100 * hundreds + 10 * tens + ones)


def shown(number: int, side: int = 16) -> Image.Image:
    return Image.new("RGB", (side, side), colour(number))


def _save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown(number).save(path, "JPEG", quality=95)


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _pickle(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def cifar10(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    """Write the pickled batches. Their published checksums cannot fit a miniature, so the class is told other ones."""
    cls: Any = datasets.CIFAR10
    base, order = root / "cifar-10-batches-py", list(range(len(classes)))
    pixels = np.stack([np.asarray(shown(i, 32)).transpose(2, 0, 1).reshape(-1) for i in order])
    for name, _ in cls.train_list:
        _pickle(base / name, {"data": pixels[1::-1], "labels": order[1::-1]})
    for name, _ in cls.test_list:
        _pickle(base / name, {"data": pixels, "labels": order})
    _pickle(base / cls.meta["filename"], {"label_names": classes})
    for listing in ("train_list", "test_list"):
        patch.setattr(cls, listing, [[n, _md5(base / n)] for n, _ in getattr(cls, listing)])
    patch.setattr(cls, "meta", {**cls.meta, "md5": _md5(base / cls.meta["filename"])})


def stanford_cars(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    base = root / "stanford_cars"
    names = np.empty(len(classes), dtype=object)
    names[:] = classes
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    for numbers, folder, file in (
        (range(len(classes)), "cars_test", "cars_test_annos_withlabels.mat"),
        ([1, 0], "cars_train", "devkit/cars_train_annos.mat"),
    ):
        rows = np.zeros(len(numbers), dtype=[("fname", object), ("class", object)])
        for row, i in enumerate(numbers):
            rows[row] = (f"{i + 1:05d}.jpg", i + 1)
            _save(base / folder / f"{i + 1:05d}.jpg", i)
        savemat(base / file, {"annotations": rows})


def flowers102(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    base = root / "flowers-102"
    for i in range(len(classes)):
        _save(base / "jpg" / f"image_{i + 1:05d}.jpg", i)
    numbers = np.arange(1, len(classes) + 1)
    savemat(base / "imagelabels.mat", {"labels": numbers})
    savemat(base / "setid.mat", {"trnid": numbers[1::-1], "valid": numbers[:1], "tstid": numbers[::-1]})
    files = {
        key: (name, _md5(base / name) if key != "image" else md5)
        for key, (name, md5) in datasets.Flowers102._file_dict.items()
    }
    patch.setattr(datasets.Flowers102, "_file_dict", files)


def sun397(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    base = root / "SUN397"
    names = [f"/{name[0]}/{name}" for name in classes]
    lines = []
    for i, name in enumerate(names):
        _save(base / name[1:] / f"sun_test{i}.jpg", i)
        lines.append(f"{name}/sun_test{i}.jpg")
    for i in (1, 0):  # not in the test partition
        _save(base / names[i][1:] / "sun_train.jpg", i)
    (base / "ClassName.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "Partitions").mkdir()
    (root / "Partitions" / "Testing_01.txt").write_text("\n".join(lines) + "\n")
    train = [f"{names[i]}/sun_train.jpg" for i in (1, 0)]
    (root / "Partitions" / "Training_01.txt").write_text("\n".join(train) + "\n")


def oxford_pets(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    lines = []
    for i, name in enumerate(classes):
        _save(base / "images" / f"{name}_1.jpg", i)
        lines.append(f"{name}_1 {i + 1} 1 1")
    (base / "annotations" / "test.txt").write_text("\n".join(reversed(lines)) + "\n")
    (base / "annotations" / "trainval.txt").write_text("\n".join(lines) + "\n")


def imagenet(root: Path, classes: list[str], patch: pytest.MonkeyPatch) -> None:
    for i, wnid in enumerate(classes):
        _save(root / "val" / wnid / f"ILSVRC2012_val_{i:08d}.JPEG", i)
        _save(root / "train" / wnid / f"{wnid}_1.JPEG", i)
    torch.save(({wnid: (f"word {wnid}",) for wnid in classes}, classes), root / "meta.bin")


FORMATS = (cifar10, stanford_cars, flowers102, sun397, oxford_pets, imagenet)
WRITERS: dict[str, Callable[[Path, list[str], pytest.MonkeyPatch], None]] = {write.__name__: write for write in FORMATS}
