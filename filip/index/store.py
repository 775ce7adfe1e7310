"""Store image tokens on disk and rank them by late interaction: a file of tokens, and an SQLite table of its images.

A text's score for an image is s^T, the mean over its tokens of the largest cosine with any token of the image (equation
5 of the paper; a pooled model has one token). Every search scores all images with the project's own engine; of large
indexes in int8 it scores the best :data:`RERANKED` of a product in integers.

Any number of processes may read while one writes. Tokens are appended and then entered in the table in one transaction;
a reader sees the table as it was when it opened the index, and no token that it may read is ever overwritten. Tokens
that a killed writer has appended but not entered are overwritten by the next.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from filip.common.errors import UserError, first_line
from filip.common.files import naming, nothing_at, write_json
from filip.eval.scorer import Scorer, Texts
from late_interaction.retrieval import text_scores

DTYPES = ("float32", "float16", "int8")
FORMAT = 5
PATIENCE = 30.0  # seconds to wait for another process to end its transaction
BLOCK = 64 << 20  # bytes of float32 tokens that are scored at a time
RERANKED = 1000  # images that are scored exactly, if there are more and their tokens are int8
TABLES = """
CREATE TABLE images (path TEXT PRIMARY KEY, stamp TEXT NOT NULL, row INTEGER NOT NULL, crc INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE tokens (file TEXT NOT NULL, rows INTEGER NOT NULL, an_image INTEGER NOT NULL, made TEXT NOT NULL);
"""


@dataclass
class About:
    """How an index was made.

    weights: SHA-256 of the model's file or files, or its name if it has none. tokens: a pooled model was
    indexed token-wise. fit: how pictures were made square, see :mod:`filip.eval.fit`.
    """

    model: str
    weights: str
    image_size: int
    token_wise: bool
    dim: int
    dtype: str
    images: str
    tokens: bool = False
    fit: str = "crop"
    format: int = FORMAT

    def made(self) -> str:
        """Return the settings that never change, as the table holds them, too."""
        return json.dumps({key: value for key, value in asdict(self).items() if key != "images"}, sort_keys=True)


class Index:
    """An index in a folder: ``about.json``, ``images.sqlite`` and the file of tokens that the latter names."""

    def __init__(self, folder: Path, about: About, table: sqlite3.Connection) -> None:
        self.folder, self.about, self._table = folder, about, table
        self._load()

    @classmethod
    def create(cls, folder: str | Path, about: About) -> Index:
        """Create an empty index. Raises UserError for a dtype in which tokens are not stored."""
        if about.dtype not in DTYPES:
            raise UserError(f"dtype={about.dtype}: one of {', '.join(DTYPES)}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for left in [*folder.glob("images.sqlite*"), *folder.glob("tokens-*.bin")]:
            left.unlink()  # left by a build that was killed before the index was complete
        with naming(folder):
            table = sqlite3.connect(folder / "images.sqlite", PATIENCE)
            table.executescript(TABLES)
            table.execute("INSERT INTO tokens VALUES ('tokens-0.bin', 0, 0, ?)", (about.made(),))
            table.commit()
            (folder / "tokens-0.bin").touch()
            write_json(folder / "about.json", asdict(about))  # last: without it, a folder is not an index
        return cls(folder, about, table)

    @classmethod
    def open(cls, folder: str | Path) -> Index:
        """Open an index that ``filip index build`` wrote. Raises UserError if it is missing or has another version.

        Only a process that holds the index's lock may change it.
        """
        folder = Path(folder)
        file = folder / "about.json"
        if not file.is_file():
            if not folder.exists():
                raise UserError(nothing_at(folder, f"make an index with `filip index build … out={folder}`"))
            raise UserError(f"no index at {folder}: make one with `filip index build … out=INDEX`")
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
            if about.get("format") != FORMAT:
                raise UserError(
                    f"{folder} has format {about.get('format')}, this version {FORMAT}: delete it and build it again"
                )
            if not isinstance(about.get("images"), str):  # the table keeps all the rest, too
                raise TypeError(f"images is {about.get('images')!r}")
            # for writing, too: the first process after a killed writer undoes its last transaction
            place = f"{(folder / 'images.sqlite').resolve().as_uri()}?mode=rw"
            return cls(folder, About(**about), sqlite3.connect(place, PATIENCE, uri=True))
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise UserError(
                    f"another process has been writing to the index {folder} for {PATIENCE:g} s: try again"
                ) from error
            raise _damaged(folder, error) from error
        except (ValueError, TypeError, AttributeError, sqlite3.DatabaseError) as error:
            raise _damaged(folder, error) from error

    def _load(self) -> None:
        """Read the table as it is now, and map its tokens."""
        for _ in range(10):  # the writer may be replacing the file of tokens at this very moment
            with self._snapshot() as table:
                name, rows, an_image, made = table.execute("SELECT * FROM tokens").fetchone()
                listed = table.execute("SELECT path, stamp, row FROM images ORDER BY row").fetchall()
            if made != self.about.made():
                raise UserError(
                    f"{self.folder / 'about.json'} is not as it was written, which was {made}: put that back, "
                    f"or delete {self.folder} and build it again"
                )
            self._file, self._rows, self._an_image = self.folder / name, rows, an_image
            self._images = {path: (stamp, row) for path, stamp, row in listed}
            try:
                self._tokens = self._mapped()
                return
            except FileNotFoundError as error:
                missing = error
        raise _damaged(self.folder, missing)

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        self._table.execute("BEGIN")
        try:
            yield self._table
        finally:
            self._table.rollback()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._table:
                yield
        except sqlite3.OperationalError as error:  # no room, or a missing disk
            raise UserError(
                f"cannot write to the index at {self.folder}: {first_line(error)}; what was in it before is kept"
            ) from error

    def _mapped(self) -> np.ndarray:
        """Return the tokens on disk, ``[rows, n1]``, see :func:`token_type`."""
        shape, kind = (self._rows, self._an_image), token_type(self.about.dtype, self.about.dim)
        size, needed = self._file.stat().st_size, int(np.prod(shape)) * kind.itemsize
        if size < needed:
            raise _damaged(self.folder, ValueError(f"{self._file.name} has {size:,} of {needed:,} bytes"))
        if not needed:
            return np.empty(shape, kind)
        # copied where it is written to, which it never is: PyTorch warns of arrays that are read-only
        return np.memmap(self._file, kind, "c", shape=shape)

    def __len__(self) -> int:
        return len(self._images)

    def close(self) -> None:
        """Release the files."""
        self._table.close()

    # ---- its content -------------------------------------------------------------------------------

    def stamps(self) -> dict[str, str]:
        """Return the stamp of every image by its path; see :class:`filip.sets.image_set.Item`."""
        return {path: stamp for path, (stamp, _) in self._images.items()}

    def tokens(self) -> Iterator[tuple[str, Tensor]]:
        """Yield path and stored tokens [n1, d] float32 of every image."""
        for path, (_, row) in self._images.items():
            yield path, restored(self._tokens[row])

    def add(self, paths: Sequence[str], stamps: Sequence[str], features: Tensor) -> None:
        """Add images, or replace those with the same path, and write them to disk.

        features: [n, n1, d], or [n, d] from a pooled model; unit vectors.
        """
        features = features.float().cpu()
        if features.ndim == 2:
            features = features[:, None]
        alike = bool(features.any(-1).all())  # else rows of zeros are padding of images in shapes of their own
        parts = [features] if alike else [image[image.any(-1)][None] for image in features]
        longest = max(self._an_image, *(part.shape[1] for part in parts))
        values = np.concatenate([_lengthened(rounded(part, self.about.dtype), longest) for part in parts])
        if self._rows and longest > self._an_image:
            self._rewrite(longest)
        with naming(self._file), open(self._file, "r+b") as file:
            file.seek(self._rows * values[0].nbytes)
            file.write(values.tobytes())
            file.flush()
            os.fsync(file.fileno())
        rows = range(self._rows, self._rows + len(values))
        sums = [zlib.crc32(row.tobytes()) for row in values]
        with self._transaction():
            self._table.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", zip(paths, stamps, rows, sums, strict=True)
            )
            self._table.execute("UPDATE tokens SET rows = ?, an_image = ?", (rows.stop, values.shape[1]))
        self._images.update(zip(paths, zip(stamps, rows, strict=True), strict=True))
        self._rows, self._an_image = rows.stop, values.shape[1]
        self._tokens = self._mapped()

    def remove(self, paths: Sequence[str]) -> None:
        """Forget images. Their tokens stay in the file until :meth:`compact`."""
        with self._transaction():
            self._table.executemany("DELETE FROM images WHERE path = ?", [(path,) for path in paths])
        for path in paths:
            del self._images[path]

    def now_of(self, images: str) -> None:
        """Note where the indexed images are, if they have been moved."""
        if images != self.about.images:
            self.about.images = images
            write_json(self.folder / "about.json", asdict(self.about))

    def compact(self) -> None:
        """Rewrite the file of tokens if most of it belongs to images that were replaced or forgotten."""
        if self._rows > 2 * len(self):
            self._rewrite(self._an_image)

    def _rewrite(self, an_image: int) -> None:
        """Write the tokens of the images to a new file, ``an_image`` of each."""
        _, _, number = self._file.stem.partition("-")
        target = self.folder / f"tokens-{int(number) + 1}.bin"
        placed = []
        with naming(target), target.open("wb") as file:
            for place, (path, (_, row)) in enumerate(self._images.items()):
                tokens = _lengthened(self._tokens[row : row + 1], an_image).tobytes()
                file.write(tokens)
                placed.append((place, zlib.crc32(tokens), path))
            file.flush()
            os.fsync(file.fileno())
        old = self._file
        with self._transaction():
            self._table.executemany("UPDATE images SET row = ?, crc = ? WHERE path = ?", placed)
            self._table.execute(
                "UPDATE tokens SET file = ?, rows = ?, an_image = ?", (target.name, len(placed), an_image)
            )
        self._load()
        old.unlink()  # a process that has it mapped keeps it

    # ---- search --------------------------------------------------------------------------------------

    @property
    def paths(self) -> list[str]:
        """Return the paths of all images, in the order of :meth:`scores`."""
        return list(self._images)

    def tokens_of(self, path: str) -> Tensor:
        """Return the stored tokens of one image, [n1, d] float32."""
        return restored(self._tokens[self._images[path][1]])

    def damaged(self) -> list[str]:
        """Return the paths of images with tokens that are not as they were written, by the checksums of their rows."""
        listed = self._table.execute("SELECT path, row, crc FROM images ORDER BY row").fetchall()
        return [path for path, row, crc in listed if zlib.crc32(self._tokens[row].tobytes()) != crc]

    def scores(self, scorer: Scorer, texts: Texts) -> Tensor:
        """Return s^T of every image for one encoded text, float32 [images]."""
        rows = np.array([row for _, row in self._images.values()], int)
        texts = Texts(texts.values.float(), texts.lengths)  # a model in 16 bits gives others
        if self.about.dtype != "int8" or len(rows) <= RERANKED:
            return self._exact(scorer, texts, rows)
        scales = torch.from_numpy(np.ascontiguousarray(self._tokens["scale"]))
        values = torch.from_numpy(self._tokens["values"])
        scores = text_scores(texts.values.cpu(), values, scales)[torch.from_numpy(rows)]
        best = scores.topk(RERANKED).indices
        scores[best] = self._exact(scorer, texts, rows[best.numpy()])
        return scores

    def _exact(self, scorer: Scorer, texts: Texts, rows: np.ndarray) -> Tensor:
        step = max(1, BLOCK // max(1, self._an_image * self.about.dim * 4))
        scores: list[float] = []
        for start in range(0, len(rows), step):
            features = restored(self._tokens[rows[start : start + step]])
            if not self.about.token_wise:
                features = features[:, 0]
            scores += scorer.similarity(features, texts).t2i[:, 0].tolist()
        return torch.tensor(scores)


def _lengthened(stored: np.ndarray, count: int) -> np.ndarray:
    """Return stored tokens [images, n1] as [images, count], the first ones repeated, which no maximum notices."""
    return stored[:, np.arange(count) % stored.shape[1]]


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"the index at {folder} is damaged ({first_line(error)}): delete it and build it again")


# ---- tokens ----------------------------------------------------------------------------------------


def token_type(dtype: str, dim: int) -> np.dtype:
    """Return the type of a stored token: its values, and for int8 their factor."""
    values = ("values", dtype, (dim,))
    return np.dtype([values, ("scale", "<f4")] if dtype == "int8" else [values])


def rounded(tokens: Tensor, dtype: str) -> np.ndarray:
    """Return unit vectors [..., d] as stored tokens [...]; int8 ones have length 1 as well."""
    stored = np.empty(tokens.shape[:-1], token_type(dtype, tokens.shape[-1]))
    if dtype == "int8":
        whole = (tokens * (127 / tokens.abs().amax(-1, keepdim=True).clamp(min=1e-12))).round()
        stored["scale"] = (1 / whole.norm(dim=-1).clamp(min=1e-12)).numpy()
        tokens = whole
    stored["values"] = tokens.numpy()
    return stored


def restored(stored: np.ndarray) -> Tensor:
    """Return stored tokens [...] as float32 [..., d]."""
    values = stored["values"].astype(np.float32)
    if "scale" in (stored.dtype.names or ()):
        values *= stored["scale"][..., None]
    return torch.from_numpy(values)
