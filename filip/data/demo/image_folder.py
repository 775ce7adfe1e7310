"""The demo corpus as a person's own images: a folder of pictures and a table of their paths and captions.

    python -m filip.data.demo.image_folder out=DIR limit=120        (then `filip data ingest source=DIR/captions.csv`)

In addition to what :mod:`filip.data.demo.corpus` makes, it writes ``captions.csv`` (path, caption, group). Bad
rows are planted in it: files that do not exist, are cut off or too small, or are not images.
"""

from __future__ import annotations

import csv
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from filip.command import run_command
from filip.data.demo import corpus
from filip.files import replacing


def main(config: corpus.Corpus) -> None:
    """Build the demo corpus and list its images in a table, for a study of images without URLs."""
    corpus.main(config)
    write_captions(Path(config.out))


def write_captions(folder: Path) -> None:
    """Write ``captions.csv`` from the corpus's list of URLs."""
    listed = pq.read_table(folder / "list.parquet", columns=["url", "caption", "group"]).to_pylist()
    with replacing(folder / "captions.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "group"])
        for row in listed:
            rows.writerow([urlsplit(row["url"]).path.lstrip("/"), row["caption"], row["group"]])


if __name__ == "__main__":
    run_command(main, corpus.Corpus)
