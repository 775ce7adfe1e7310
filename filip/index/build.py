"""Index a folder of images: ``filip index build model=filip.safetensors images=FOLDER out=INDEX``.

A second build adds new images, replaces changed ones (by size and time of modification) and forgets missing
ones; one that was interrupted continues. Images that cannot be read are left out, named and counted. Others may search
the index meanwhile. A folder of images that has been moved is the same folder if the old one is no longer there.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from filip.cli.command import MISSING, option, run_command
from filip.common.device import best_precision, resolve
from filip.common.errors import UserError
from filip.common.files import locked
from filip.common.progress import Progress, say
from filip.eval.encoders import stacked
from filip.eval.fit import FITS
from filip.eval.scorer import Scorer, load_scorer
from filip.index.store import DTYPES, About, Index
from filip.runs.saved_files import weights_of
from filip.sets.image_set import SetPictures

FORGOTTEN, FEW = 0.1, 10  # share of the images, and how many: if more are gone, their disk may be missing


class OtherIndexError(UserError):
    """An index was made of other images, by another model or with other settings than asked for."""


@dataclass
class Build:
    model: str = option(MISSING, "a .safetensors file, or any other model that the evaluation takes")
    images: str = option(MISSING, "folder of images, searched recursively; or a set with captions")
    out: str = option(MISSING, "folder of the index", writes="store")
    dtype: str = option("int8", "type of the stored tokens: float32, float16 or int8", choices=DTYPES)
    batch_size: int = option(64, "images encoded, and written, at a time", at_least=1)
    threads: int = option(2, "threads that decode images", at_least=1)
    tokens: bool = option(False, "index a pooled model token-wise: every patch by its own projection")
    fit: str = option("crop", "pictures that are not square: crop = their centre, pad = whole", choices=FITS)
    forget: bool = option(
        False, f"forget images that are gone even if they are more than {FEW} and {FORGOTTEN:.0%} of the index"
    )
    device: str = option("auto", "torch device; auto = a GPU where there is one")


def main(config: Build) -> None:
    """Make or update an index of all images below a folder."""
    up_to_date(config, scorer_of(config)).close()


def scorer_of(config: Build) -> Scorer:
    """Load the model of an index, in 16 bits where the hardware multiplies them and 8 are kept of the tokens anyway."""
    precision = best_precision(resolve(config.device)) if config.dtype == "int8" else "fp32"
    return load_scorer(config.model, None, config.device, tokens=config.tokens, fit=config.fit, precision=precision)


def up_to_date(config: Build, scorer: Scorer) -> Index:
    """Make or update an index, and return it open.

    Raises OtherIndexError for one that was made otherwise, and UserError if much of it is gone and not to be forgotten.
    """
    pictures = SetPictures(Path(config.images), None)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / "lock", busy=f"another `filip index build` is writing to {out}"):
        index = _opened(config, scorer, out)
        try:
            images = str(Path(config.images).resolve())
            old, stored, present = index.about.images, index.stamps().keys(), pictures.items.keys()
            if old != images and (Path(old).exists() or not stored & present):  # else its folder has been moved
                raise OtherIndexError(
                    f"{out} was made of the images in {old}, not in {images}: give another folder for the new index"
                )
            gone = sorted(stored - present)
            if not config.forget and len(gone) > max(FEW, FORGOTTEN * len(index)):
                raise UserError(
                    f"{len(gone):,} of the {len(index):,} images in {out} are no longer at {images}, such as "
                    f"{gone[0]}: if a disk is missing, mount it; if they are to be forgotten, add forget=true"
                )
            index.now_of(images)
            update(index, scorer, pictures, config.batch_size, config.threads)
            index.compact()
        except BaseException:
            index.close()
            raise
        return index


def update(index: Index, scorer: Scorer, pictures: SetPictures, batch_size: int, threads: int) -> None:
    """Bring an index up to date with a folder."""
    if damaged := index.damaged():
        say(f"{index.folder}: encoding {len(damaged):,} damaged images again, such as {damaged[0]}")
        index.remove(damaged)
    stored = index.stamps()
    present = pictures.items
    gone = sorted(stored.keys() - present.keys())
    if gone:
        index.remove(gone)
    changed = [key for key, item in present.items() if stored.get(key) != item.stamp]
    unreadable = 0
    with Progress("indexing", "images", len(changed)) as progress, ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(changed), batch_size):
            keys = changed[start : start + batch_size]
            stamps = [present[key].stamp for key in keys]
            pixels = list(pool.map(lambda key: _pixels(scorer, key, pictures), keys))
            good = [n for n, values in enumerate(pixels) if values is not None]
            unreadable += len(keys) - len(good)
            if good:
                features = scorer.encode_images(stacked([p for p in pixels if p is not None]))
                index.add([keys[n] for n in good], [stamps[n] for n in good], features)
            progress.add(len(keys))
    say(
        f"{index.folder}: {len(index):,} images; {len(changed) - unreadable:,} encoded, "
        f"{len(present) - len(changed):,} already there, {len(gone):,} gone, {unreadable:,} unreadable"
        + (f"; left out: {pictures.left_out}" if pictures.left_out else "")
    )


def _opened(config: Build, scorer: Scorer, out: Path) -> Index:
    """Open the index at ``out``, or a new one. Raises UserError if it was made with another model or dtype."""
    patches = scorer.encode_images(stacked([scorer.transform(Image.new("RGB", (64, 64)))]))
    if patches.ndim == 3 and not scorer.token_wise:
        raise UserError(f"an index cannot hold the comparisons of {scorer.name}, which are its own: add tokens=true")
    about = About(
        model=str(Path(config.model).resolve()) if Path(config.model).exists() else config.model,
        weights=weights_of(config.model),
        image_size=scorer.image_size,
        token_wise=scorer.token_wise,
        dim=patches.shape[-1],
        dtype=config.dtype,
        images=str(Path(config.images).resolve()),
        tokens=config.tokens,
        fit=config.fit,
    )
    if not (out / "about.json").is_file():
        return Index.create(out, about)
    index = Index.open(out)
    if difference := _difference(index.about, about):
        index.close()
        raise OtherIndexError(f"{out} {difference}: give another folder for the new index")
    return index


def _difference(old: About, new: About) -> str:
    """Return how an index differs from the request; "" if in nothing that counts."""
    if old.weights != new.weights:
        if old.model != new.model:
            return f"was made by the model {old.model}, not {new.model}"
        return f"was made by {old.model} as it was then, and the file has changed since"
    for key in ("image_size", "dtype", "tokens", "fit"):
        if getattr(old, key) != getattr(new, key):
            return f"was made with {key}={getattr(old, key)}, not {getattr(new, key)}"
    return ""


def _pixels(scorer: Scorer, key: str, pictures: SetPictures) -> Tensor | None:
    try:
        return scorer.transform(pictures.read(key))
    except UserError as error:
        say(f"left out {key}: {error}")
        return None


if __name__ == "__main__":
    run_command(main, Build)
